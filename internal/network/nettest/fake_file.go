package nettest

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/network"
)

// savedHost is a Fake in its File.
type savedHost struct {
	Links      map[string]savedLink
	Tables     map[string]savedTable
	Forwarding bool
}

type savedLink struct {
	Kind, Alias, Master string
	Up, Isolated        bool
	Localnet            bool
	Limit               network.Limit
	Addr                netip.Prefix
}

type savedTable struct {
	Owner   string
	Rules   []mvm.FirewallRule
	Backend network.Backend
	Open    map[netip.Addr]time.Duration
	Deny    network.Denials
}

// share takes the file's lock and reads the host that it holds. The function
// returned writes it back, as a whole, and lets the next one in.
func (f *Fake) share(ctx context.Context) (func(), error) {
	lock, err := fsx.LockWait(ctx, f.File+".lock")
	if err != nil {
		return nil, err
	}
	var s savedHost
	data, err := os.ReadFile(f.File)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		lock.Unlock()
		return nil, err
	}
	f.links, f.tables, f.forwarding = nil, nil, s.Forwarding
	if s.Links != nil {
		f.links, f.tables = map[string]*fakeLink{}, map[string]*fakeTable{}
	}
	for name, l := range s.Links {
		f.links[name] = &fakeLink{kind: l.Kind, alias: l.Alias, up: l.Up, addr: l.Addr, master: l.Master, isolated: l.Isolated, localnet: l.Localnet, limit: l.Limit}
	}
	for name, t := range s.Tables {
		f.tables[name] = &fakeTable{t.Owner, t.Rules, t.Backend, t.Open, t.Deny}
	}
	return func() {
		defer lock.Unlock()
		if err := f.save(); err != nil {
			panic("the fake network cannot be written: " + err.Error()) // no test can go on from here
		}
	}, nil
}

func (f *Fake) save() error {
	s := savedHost{map[string]savedLink{}, map[string]savedTable{}, f.forwarding}
	for name, l := range f.links {
		s.Links[name] = savedLink{l.kind, l.alias, l.master, l.up, l.isolated, l.localnet, l.limit, l.addr}
	}
	for name, t := range f.tables {
		s.Tables[name] = savedTable{t.owner, t.rules, t.backend, t.open, t.denied}
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := f.File + ".tmp"
	return errors.Join(os.WriteFile(tmp, data, 0o600), os.Rename(tmp, f.File))
}
