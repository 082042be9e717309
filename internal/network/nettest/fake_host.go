package nettest

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/mvmctl/mvm/internal/network"
)

// AddLink makes an interface of somebody else.
func (f *Fake) AddLink(name string) {
	end, _ := f.begin(context.Background())
	defer end()
	f.links[name] = &fakeLink{kind: "other", up: true}
}

// AddPorts puts interfaces of somebody else on a bridge.
func (f *Fake) AddPorts(bridge string, n int) {
	end, _ := f.begin(context.Background())
	defer end()
	for i := range n {
		f.links[fmt.Sprint("p", i)] = &fakeLink{kind: "other", up: true, master: bridge}
	}
}

// DelLink removes an interface, as 'ip link del' does.
func (f *Fake) DelLink(name string) {
	end, _ := f.begin(context.Background())
	defer end()
	f.dropLink(name)
}

// SetDown sets an interface down.
func (f *Fake) SetDown(name string) {
	end, _ := f.begin(context.Background())
	defer end()
	f.links[name].up = false
}

// AddTable makes an nftables table of somebody else.
func (f *Fake) AddTable(name string) {
	end, _ := f.begin(context.Background())
	defer end()
	f.tables[name] = &fakeTable{}
}

// HasTable says whether an nftables table of a name is there.
func (f *Fake) HasTable(name string) bool {
	end, _ := f.begin(context.Background())
	defer end()
	return f.tables[name] != nil
}

// Tables lists the nftables tables by name.
func (f *Fake) Tables() []string {
	end, _ := f.begin(context.Background())
	defer end()
	return slices.Sorted(maps.Keys(f.tables))
}

// RulesIn says which backend has the rules of a name, "" where nothing does.
func (f *Fake) RulesIn(name string) network.Backend {
	end, _ := f.begin(context.Background())
	defer end()
	if t := f.tables[name]; t != nil {
		return t.backend
	}
	return ""
}

// FlushTable removes the rules of a table, as 'nft flush table' does.
func (f *Fake) FlushTable(name string) {
	end, _ := f.begin(context.Background())
	defer end()
	f.tables[name].rules = nil
}
