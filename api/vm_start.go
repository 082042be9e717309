package api

import (
	"context"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/store"
)

// planStart makes the plan for a VM that exists: its choices are those it was
// created with, and what they refer to must still be there.
func (c *core) planStart(ctx context.Context, st *store.Store, inv *inventory, vm *mvm.VMInstanceItem) (*vmPlan, error) {
	p, err := c.planFrom(ctx, st, inv, vm, vm.NetworkID)
	if err != nil {
		return nil, err
	}
	if p.identity, err = c.loadIdentity(vm.ID); err != nil {
		return nil, err
	}
	if err := c.checkPorts(ctx, vm); err != nil {
		return nil, err
	}
	return p, p.finishStart(ctx)
}

// planFrom makes a plan of stored choices. network is the id or name of one.
func (c *core) planFrom(ctx context.Context, st *store.Store, inv *inventory, vm *mvm.VMInstanceItem, network string) (*vmPlan, error) {
	p := &vmPlan{c: c, set: inv.set, item: vm}
	find := func(what, id string, found bool) error {
		if found {
			return nil
		}
		return mvm.Errorf(mvm.ErrBroken, "its %s (%s) is gone", what, short(id)).WithHint("get it again, or remove the VM with 'mvm vm rm %s'", vm.Name)
	}
	i := slices.IndexFunc(inv.images, func(x *mvm.ImageItem) bool { return x.ID == vm.ImageID })
	k := slices.IndexFunc(inv.kernels, func(x *mvm.KernelItem) bool { return x.ID == vm.KernelID })
	n := slices.IndexFunc(inv.networks, func(x *mvm.NetworkItem) bool { return x.ID == network || x.Name == network })
	for _, err := range []error{find("image", vm.ImageID, i >= 0), find("kernel", vm.KernelID, k >= 0), find("network", network, n >= 0)} {
		if err != nil {
			return nil, err
		}
	}
	p.image, p.kernel, p.network = inv.images[i], inv.kernels[k], inv.networks[n]
	if err := p.checkAssets(); err != nil {
		return nil, err
	}
	if err := p.findVolumes(inv); err != nil {
		return nil, err
	}
	var keys []*mvm.SSHKeyItem
	for _, key := range inv.keys {
		if slices.Contains(vm.SSHKeys, key.Name) {
			keys = append(keys, key)
		}
	}
	names := vm.SSHKeys
	if err := p.useKeys(keys); err != nil {
		return nil, err
	}
	vm.SSHKeys = names // also those whose key was removed: the guest's disk still has them
	d, probe, _, err := c.chooseDriverFor(ctx, st, p.kernel, vm.Hypervisor, vm.Options.FirecrackerBin, vm.BinaryID)
	if err != nil {
		return nil, err
	}
	p.driver, p.probe, p.noAgent = d, probe, !vm.HasAgent
	return p, nil
}

// finishStart fills in what may differ from the last start.
func (p *vmPlan) finishStart(ctx context.Context) error {
	p.item.Accel = p.probe.Accel
	p.item.TapDevice = network.TapName(p.item.ID)
	if err := p.volumesFit(); err != nil {
		return err
	}
	if err := p.chooseJail(ctx); err != nil {
		return err
	}
	if err := p.c.checkVMDNS(ctx, p.network, p.item); err != nil {
		return err
	}
	_, err := p.driver.Render(p.launch())
	return err
}
