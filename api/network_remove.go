package api

import (
	"context"
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// Remove removes networks. One that VMs refer to, one with leases and the default
// one are kept unless force is set; one that a VM runs on is kept always. VMs of a
// network that was removed by force cannot be started any more.
func (o *NetworkOperation) Remove(ctx context.Context, in NetworkInput, force bool) (mvm.Batch[*mvm.NetworkItem], error) {
	var batch mvm.Batch[*mvm.NetworkItem]
	if len(in.Identifiers) == 0 {
		return batch, mvm.Errorf(mvm.ErrInvalid, "no network was named").WithHint("name one or more; see 'mvm network ls'")
	}
	for _, sel := range in.Identifiers {
		n, err := o.Get(ctx, NetworkInput{[]string{sel}})
		if err == nil {
			err = mvm.Wrap(o.core.removeNetwork(ctx, n, force), "remove network", n.Name)
		}
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.NetworkItem]{Identifier: sel, Item: n, Err: err})
	}
	return batch, batch.Err()
}

// removeNetwork removes a network for good. From here it only goes forward: a
// crash is finished by the next command.
func (c *core) removeNetwork(ctx context.Context, n *mvm.NetworkItem, force bool) error {
	if err := c.requireRoot("removing a network"); err != nil {
		return err
	}
	users, err := c.st.ListVMsUsing(ctx, store.UseNetwork, n.ID)
	if err != nil {
		return err
	}
	for _, vm := range users { // what ended meanwhile does not run
		c.observe(ctx, c.st, vm)
	}
	if n.IsDefault && !force {
		return mvm.Errorf(mvm.ErrConflict, "it is the default network").WithHint("make another the default with 'mvm network default', or add --force")
	}
	return c.journal.Forward(ctx, op.Op{
		Kind: opNetworkRemove, Subject: n.Name, SubjectID: n.ID,
		Reserve: func(tx *store.Tx) error { return reserveRemoval(ctx, tx, n, force) },
		Steps:   []op.Step{&bridgeStep{c: c, Spec: networkSpec(n)}},
	})
}

// reserveRemoval closes a network to new VMs, if none is in the way.
func reserveRemoval(ctx context.Context, tx *store.Tx, n *mvm.NetworkItem, force bool) error {
	users, err := tx.ListVMsUsing(ctx, store.UseNetwork, n.ID)
	if err != nil {
		return err
	}
	for _, vm := range users {
		if vm.Status.Active() {
			return mvm.Errorf(mvm.ErrConflict, "VM %s is %s on it", mvm.Quote(vm.Name), vm.Status).WithHint("stop it first with 'mvm vm stop %s'", vm.Name)
		}
	}
	if err := inUse(users, force); err != nil {
		return err
	}
	leases, err := tx.ListLeases(ctx, n.ID)
	if err != nil {
		return err
	}
	if len(leases) > 0 && !force {
		return mvm.Errorf(mvm.ErrConflict, "its address %s is leased", leases[0].IPv4).WithHint("see 'mvm network inspect %s'; add --force to remove it all the same", n.Name)
	}
	stored, err := tx.GetNetwork(ctx, n.ID)
	if err != nil {
		return err
	}
	if stored.DeletedAt != nil {
		return mvm.Errorf(mvm.ErrNotFound, "it was removed meanwhile").WithHint("see 'mvm network ls'")
	}
	stored.IsPresent = false
	return tx.UpdateNetwork(ctx, stored)
}

// forgetNetwork ends a removed network in the store.
func forgetNetwork(tx *store.Tx, id string, _ []byte) error {
	ctx := tx.Context()
	return errors.Join(tx.DeleteLeasesOfNetwork(ctx, id), tx.DeleteFirewallRules(ctx, id), tx.DeleteNetwork(ctx, id))
}

// SetDefault makes a network the one that new VMs are put on when none is named.
func (o *NetworkOperation) SetDefault(ctx context.Context, in NetworkInput) (*mvm.NetworkItem, error) {
	n, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	n.IsDefault = true
	return n, mvm.Wrap(o.core.st.SetDefaultNetwork(ctx, n.ID), "make the default network", n.Name)
}

// Prune removes the networks that no VM refers to and that have no leases. The
// default one is kept; with All it goes too, and so do those of VMs that do not
// run. What cannot be removed is told in the error, beside the rest.
func (o *NetworkOperation) Prune(ctx context.Context, in PruneInput) (*PruneResult, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	nets, err := st.ListNetworks(ctx)
	if err != nil {
		return nil, err
	}
	res := &PruneResult{Removed: []string{}}
	var errs []error
	for _, n := range nets {
		spare, err := c.spareNetwork(ctx, st, n, in.All)
		if err != nil {
			return res, err
		}
		if spare {
			continue
		}
		if !in.DryRun {
			if err := c.removeNetwork(ctx, n, in.All); err != nil {
				errs = append(errs, mvm.Wrap(err, "remove network", n.Name))
				continue
			}
		}
		res.Removed = append(res.Removed, n.Name)
	}
	return res, errors.Join(errs...)
}

// spareNetwork says whether pruning leaves a network alone.
func (c *core) spareNetwork(ctx context.Context, st *store.Store, n *mvm.NetworkItem, all bool) (bool, error) {
	vms, err := st.ListVMsUsing(ctx, store.UseNetwork, n.ID)
	if err != nil {
		return true, err
	}
	leases, err := st.ListLeases(ctx, n.ID)
	if err != nil {
		return true, err
	}
	for _, vm := range vms {
		if c.observe(ctx, st, vm); vm.Status.Active() {
			return true, nil
		}
	}
	return !all && (n.IsDefault || len(vms) > 0 || len(leases) > 0), nil
}

// PruneNetworks is Network.Prune.
func (o *CacheOperation) PruneNetworks(ctx context.Context, in PruneInput) (*PruneResult, error) {
	return (&NetworkOperation{o.core}).Prune(ctx, in)
}
