package api

import (
	"context"
	"errors"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/store"
)

// The setting that says where the firewall rules stand.
const (
	firewallCategory = "settings"
	firewallKey      = "firewall_backend"
)

// firewallBackend returns where the rules of networks and VMs are to stand.
func (c *core) firewallBackend(ctx context.Context) (network.Backend, error) {
	if c.st == nil {
		return network.NFTables, nil
	}
	return firewallBackend(ctx, c.st.Queries)
}

func firewallBackend(ctx context.Context, q store.Queries) (network.Backend, error) {
	over, err := overrides(ctx, q)
	if err != nil {
		return "", err
	}
	s, _ := mvm.SettingOf(firewallCategory, firewallKey)
	b, _ := over.entry(s).Value.(string)
	return network.Backend(b), nil
}

const opFirewallMove = "firewall.move"

// firewallSubject is what the operation works on: there is one setting.
const firewallSubject = "firewall"

// moveStep moves the rules of all networks and of the VMs that run to the backend
// that the setting names by then. It has nothing to take back: whichever setting is
// the last, it brings the rules there, and rules that are in the old place hold until
// they are in the new one.
type moveStep struct{ c *core }

func (s *moveStep) Kind() string { return "firewall" }

func (s *moveStep) Apply(context.Context) error { return nil }

func (s *moveStep) Revert(ctx context.Context) error {
	st := s.c.st
	nets, err := st.ListNetworks(ctx)
	if err != nil {
		return err
	}
	vms, err := st.ListVMs(ctx)
	if err != nil {
		return err
	}
	_, err = s.c.syncNetworks(ctx, st, nets, vms)
	return err
}

// setFirewall changes the setting by change, and moves the rules there. A crash is
// finished by the next command.
func (c *core) setFirewall(ctx context.Context, b network.Backend, change func(*store.Tx) error) error {
	nets, err := c.st.ListNetworks(ctx)
	if err != nil {
		return err
	}
	was, err := firewallBackend(ctx, c.st.Queries)
	if err != nil {
		return err
	}
	present := slices.ContainsFunc(nets, func(n *mvm.NetworkItem) bool { return n.IsPresent })
	if b == was || !present {
		return c.st.Tx(ctx, change)
	}
	if err := c.requireRoot("moving the firewall rules"); err != nil {
		return err
	}
	err = c.journal.Forward(ctx, op.Op{
		Kind: opFirewallMove, Subject: "firewall rules", SubjectID: firewallSubject,
		Reserve: change,
		Steps:   []op.Step{&moveStep{c}},
	})
	if errors.Is(err, mvm.ErrPrivilege) {
		return err
	}
	return mvm.Wrap(err, "move the rules to", string(b))
}

// checkBackend refuses a backend whose programs are not there.
func (c *core) checkBackend(ctx context.Context, b network.Backend) error {
	if b != network.IPTables {
		return nil
	}
	_, err := c.runner.Run(ctx, run.Cmd{Name: "iptables-restore", Args: []string{"--version"}})
	return err
}
