package api

import (
	"context"
	"errors"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// forceLimit is how long a forced removal waits for the command that works on the VM.
const forceLimit = time.Minute

// forcePoll is the pause between looks whether it has ended.
const forcePoll = 50 * time.Millisecond

// removeForced removes a VM though another command may work on it: that is waited
// for. A guest that another command waits for is not given the time to shut down.
func (c *core) removeForced(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) error {
	for end := time.Now().Add(forceLimit); ; {
		err := c.removeVM(ctx, vm, nil)
		switch {
		case errors.Is(err, mvm.ErrNotFound):
			return nil // whoever was making it has taken that back
		case !errors.Is(err, mvm.ErrBusy) || ctx.Err() != nil || time.Now().After(end):
			return err
		}
		if _, rerr := c.journal.Recover(ctx); rerr != nil { // it may have died meanwhile
			return errors.Join(err, rerr)
		}
		if ops, lerr := st.ListOps(ctx, vm.ID); lerr == nil && len(ops) == 1 && ops[0].Kind == "vm."+string(mvm.VerbStop) {
			if kerr := c.killVMM(ctx, vm.ID, 0); kerr != nil {
				return kerr
			}
		}
		pause(ctx, forcePoll)
	}
}
