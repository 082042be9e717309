package api

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// Autostart brings all networks up, rules included, and then starts the VMs whose
// restart policy is always and that no command has stopped, above all those that ran
// when the host went down. It is for the host's boot; at other times it starts those
// whose restarts were given up. The batch has an entry for each of them.
func (o *VMOperation) Autostart(ctx context.Context, opts ...Option) (mvm.Batch[*mvm.VMInstanceItem], error) {
	c, progress := o.core, options(opts).progress
	var batch mvm.Batch[*mvm.VMInstanceItem]
	if err := c.requireRoot("starting VMs"); err != nil {
		return batch, err
	}
	st, err := c.open(ctx)
	if err != nil {
		return batch, err
	}
	// While this works, nobody else restarts VMs; who does so already may go on.
	lock, err := fsx.TryLock(c.restartLock())
	if err != nil && !errors.Is(err, fsx.ErrLocked) {
		return batch, err
	}
	vms, err := o.ListAll(ctx)
	if err != nil {
		lock.Unlock()
		return batch, err
	}
	nets, err := st.ListNetworks(ctx)
	if err == nil {
		_, err = c.syncNetworks(ctx, st, nets, vms)
	}
	if err != nil { // a VM whose own network is right starts all the same
		c.notice("not all networks are up: " + err.Error())
	}
	for _, vm := range vms {
		if vm.Options.Restart == mvm.RestartAlways && (waitsForRestart(vm) || vm.Status == mvm.StatusCrashed) {
			batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.VMInstanceItem]{Identifier: vm.Name, Item: vm})
		}
	}
	var g errgroup.Group
	g.SetLimit(parallelVerbs)
	for i := range batch.Entries {
		g.Go(func() error {
			e := &batch.Entries[i]
			progress.Send("start", "starting "+e.Item.Name)
			err := c.start(ctx, st, e.Item, "started by its restart policy (always)")
			if now, gerr := o.Get(ctx, VMInput{Identifiers: []string{e.Item.ID}}); err != nil && gerr == nil && now.Status == mvm.StatusRunning {
				e.Item, err = now, nil // somebody else was quicker
			}
			e.Err = mvm.Wrap(err, "start VM", e.Item.Name)
			return nil
		})
	}
	_ = g.Wait() // the errors are in the entries
	lock.Unlock()
	if waiting, err := c.waitingVMs(ctx); err == nil {
		c.wakeRestarterFor(ctx, waiting)
	}
	return batch, batch.Err()
}
