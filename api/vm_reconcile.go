package api

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// observe corrects the phases of VMs by what their processes show, and writes that
// down where no other command works on the VM. The supervisor has done so already
// unless it was killed, or the host was rebooted. Only VMs that should run are
// looked at.
func (c *core) observe(ctx context.Context, st *store.Store, vms ...*mvm.VMInstanceItem) {
	var ended []*mvm.VMInstanceItem
	var deaths []death
	for _, vm := range vms {
		if hasEnded(vm) {
			ended, deaths = append(ended, vm), append(deaths, c.autopsy(ctx, vm))
		}
	}
	if len(ended) > 0 {
		// A failure to write is no failure to tell: the next command tries again.
		_ = st.Tx(ctx, func(tx *store.Tx) error { return noteEnds(ctx, tx, ended, deaths) })
	}
	for i, vm := range ended {
		if hasEnded(vm) { // it was not written down
			deaths[i].show(vm)
		}
	}
	c.wakeRestarterFor(ctx, vms)
}

// noteEnds writes down the ends of VMs, but of those that another command works
// on: that one finds out. VMs are afterwards as they are stored.
func noteEnds(ctx context.Context, tx *store.Tx, ended []*mvm.VMInstanceItem, deaths []death) error {
	for i, vm := range ended {
		stored, err := tx.GetVM(ctx, vm.ID)
		if err != nil {
			continue // it was removed meanwhile
		}
		if hasEnded(stored) {
			if ops, err := tx.ListOps(ctx, vm.ID); err != nil || len(ops) > 0 {
				continue
			}
			if err := deaths[i].settle(ctx, tx, stored); err != nil {
				return err
			}
		}
		*vm = *stored
	}
	return nil
}

// show makes a VM look as it will when its end is written down.
func (d death) show(vm *mvm.VMInstanceItem) {
	vm.Status, vm.ExitCode, vm.PID, vm.ProcessStartTime, vm.RelayPID, vm.Handle = d.to, d.code, 0, nil, nil, nil
	if d.to == mvm.StatusCrashed {
		vm.StatusReason = d.cause
	}
}
