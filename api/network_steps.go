package api

import (
	"context"
	"net"
	"net/netip"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

const (
	opNetworkCreate = "network.create"
	opNetworkRemove = "network.remove"
)

// bridgeStep makes a network: its bridge, gateway and rules. Reverting removes them
// where they are this network's, which the kernel is asked.
type bridgeStep struct {
	c    *core
	Spec network.Spec `json:"spec"`
}

func (s *bridgeStep) Kind() string { return "bridge" }

func (s *bridgeStep) Apply(ctx context.Context) error {
	_, err := s.c.ensureNetwork(ctx, s.Spec)
	return err
}

func (s *bridgeStep) Revert(ctx context.Context) error { return s.c.net.RemoveNetwork(ctx, s.Spec) }

// networkUndo tells the journal how operations on networks end in the store.
func (c *core) networkUndo(j *op.Journal) {
	j.OnUndo(opNetworkCreate, func(tx *store.Tx, id string, _ []byte) error { return tx.ForgetNetwork(tx.Context(), id) })
	j.OnFinish(opNetworkRemove, forgetNetwork)
	j.OnFinish(opFirewallMove, func(*store.Tx, string, []byte) error { return nil })
}

// tapSpec is a VM's device as the kernel is to have it.
func tapSpec(vm *mvm.VMInstanceItem, n *mvm.NetworkItem) (network.TapSpec, error) {
	mac, err := net.ParseMAC(vm.MAC)
	if err != nil {
		return network.TapSpec{}, mvm.Errorf(mvm.ErrBroken, "stored MAC address %s: %w", mvm.Quote(vm.MAC), err)
	}
	ip, err := netip.ParseAddr(vm.IPv4)
	if err != nil {
		return network.TapSpec{}, mvm.Errorf(mvm.ErrBroken, "stored address %s: %w", mvm.Quote(vm.IPv4), err)
	}
	t := network.TapSpec{
		Name: vm.TapDevice, Bridge: n.Bridge, NetworkID: n.ID, MAC: mac, IP: ip, VMID: vm.ID, VMName: vm.Name,
		Isolated: vm.Options.Isolate, Publish: portsOf(vm), Egress: egressOf(vm), Limit: tapLimit(vm),
	}
	if vm.Options.Jailed {
		t.OwnerUID = vm.Options.JailUID
	}
	return t, nil
}
