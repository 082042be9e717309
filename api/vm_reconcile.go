package api

import (
	"context"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/supervisor"
)

// observe corrects the phases of VMs by what their processes show, and writes that
// down where nobody else does: no command works on the VM, and its supervisor was
// killed, or the host rebooted. Only VMs that should run are looked at.
func (c *core) observe(ctx context.Context, st *store.Store, vms ...*mvm.VMInstanceItem) {
	var ended []*mvm.VMInstanceItem
	var deaths []death
	for _, vm := range vms {
		observeServer(vm)
		if hasEnded(vm) {
			ended, deaths = append(ended, vm), append(deaths, c.autopsy(ctx, vm))
			if c.mayAct() {
				_ = supervisor.EndServers(ctx, vm.ID) // else its volumes are held; the next command tries again
			}
		}
	}
	if len(ended) > 0 {
		// A failure to write is no failure to tell: the next command tries again.
		_ = st.Tx(ctx, func(tx *store.Tx) error { return noteEnds(ctx, tx, ended, deaths, c.beingTold(ended)) })
	}
	for i, vm := range ended {
		if hasEnded(vm) { // it was not written down
			deaths[i].show(vm)
		}
	}
	c.wakeRestarterFor(ctx, vms)
}

// beingTold are those of the VMs that have ended, by id, whose supervisors see to it
// that this is written down.
func (c *core) beingTold(ended []*mvm.VMInstanceItem) map[string]bool {
	told := map[string]bool{}
	any, err := proc.FindByArg(supervisor.EndedToken(""))
	for _, vm := range ended {
		h, _ := handleOf(vm)
		told[vm.ID] = proc.Alive(h.Supervisor)
		if err == nil && len(any) > 0 && !told[vm.ID] {
			own, err := proc.FindByArg(supervisor.EndedToken(vm.ID))
			told[vm.ID] = err == nil && len(own) > 0
		}
	}
	return told
}

// endLimit is how long a command waits until the end of a VM is written down.
const endLimit = 2 * time.Second

// observeOne is observe for a VM that a command of root's is about to do something
// with: its end is written down first, with all that belongs to it.
func (c *core) observeOne(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) {
	if hasEnded(vm) && c.mayAct() {
		soon, cancel := context.WithTimeout(ctx, endLimit)
		defer cancel()
		_ = c.recordEnd(soon, vm.ID) // else it is shown at least
		if now, err := st.GetVM(ctx, vm.ID); err == nil {
			*vm = *now
		}
	}
	c.observe(ctx, st, vm)
	c.resupervise(ctx, st, vm)
}

// noteEnds writes down the ends of VMs, but of those that somebody else is told of,
// or that another command works on: that one finds out. VMs are afterwards as they
// are stored.
func noteEnds(ctx context.Context, tx *store.Tx, ended []*mvm.VMInstanceItem, deaths []death, told map[string]bool) error {
	for i, vm := range ended {
		stored, err := tx.GetVM(ctx, vm.ID)
		if err != nil {
			continue // it was removed meanwhile
		}
		if hasEnded(stored) {
			if ops, err := tx.ListOps(ctx, vm.ID); err != nil || len(ops) > 0 || told[vm.ID] {
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
