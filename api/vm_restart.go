package api

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
)

// restartCommand is the first argument of the process that starts VMs again as
// their restart policies ask for; childArgs follow. There is one for all VMs of a
// cache, and only while one of them waits: what it has to do stands in their rows.
// One that is killed is missed until the next command looks at such a VM, or the
// next VM ends; either starts another.
const restartCommand = "__restart"

// The delays of restarts are docker's (restartmanager.go): 100 ms, doubled by each
// restart up to a minute, and begun anew once a VM has run for ten seconds.
const (
	restartFirst = 100 * time.Millisecond
	restartMost  = time.Minute
	restartCalm  = 10 * time.Second
)

// planRestart says whether, and after which delay, a VM that ended by itself is to
// be started again.
func planRestart(vm *mvm.VMInstanceItem, d death) (delay time.Duration, again bool) {
	switch vm.Options.Restart {
	case mvm.RestartAlways:
	case mvm.RestartOnFailure:
		if d.to != mvm.StatusCrashed || d.rebooted {
			return 0, false
		}
	default:
		return 0, false
	}
	if d.rebooted {
		return 0, true
	}
	if vm.ProcessStartTime != nil && d.at.Sub(time.UnixMilli(*vm.ProcessStartTime)) >= restartCalm {
		return restartFirst, true
	}
	return nextDelay(vm), true
}

// nextDelay is the delay that follows the one that a VM had last.
func nextDelay(vm *mvm.VMInstanceItem) time.Duration {
	last := time.Duration(vm.Options.RestartDelayMS) * time.Millisecond
	return min(max(2*last, restartFirst), restartMost)
}

// dueIn is how long a VM has to wait still; one whose time cannot be read is due.
func dueIn(vm *mvm.VMInstanceItem) time.Duration {
	at, err := time.Parse(time.RFC3339, vm.Options.RestartAt)
	if err != nil {
		return 0
	}
	return min(time.Until(at), restartMost) // the clock may have been set back
}

func waitsForRestart(vm *mvm.VMInstanceItem) bool {
	return vm.Options.RestartAt != "" && (vm.Status == mvm.StatusStopped || vm.Status == mvm.StatusCrashed)
}

// wakeRestarterFor sees to it that those of the VMs that wait for a restart get it.
func (c *core) wakeRestarterFor(ctx context.Context, vms []*mvm.VMInstanceItem) {
	if slices.ContainsFunc(vms, waitsForRestart) && c.mayAct() {
		_ = c.wakeRestarter(ctx) // else the next command does
	}
}

func (c *core) restartLock() string { return filepath.Join(c.paths.cache, "restart.lock") }

// wakeRestarter starts the process that restarts VMs, unless it is there.
func (c *core) wakeRestarter(context.Context) error {
	lock, err := fsx.TryLock(c.restartLock())
	if errors.Is(err, fsx.ErrLocked) {
		return nil // it looks again before it ends
	}
	if err != nil {
		return err
	}
	lock.Unlock()
	return c.startRestarter()
}

func (c *core) spawnRestarter() error {
	p, _, err := proc.StartDetached(proc.Spec{Path: c.cfg.Executable, Args: c.childArgs(restartCommand), Dir: "/"})
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot start what restarts VMs: %w", err)
	}
	go func() { _, _ = p.Wait() }() // no zombie while we live
	return nil
}

// restartMain is that process. It returns the exit status.
func restartMain(args []string, change func(*core)) int {
	c, _, err := childCore(args, change)
	if err != nil {
		return 2
	}
	defer func() { _ = c.close() }()
	if err := c.restarter(context.Background()); err != nil {
		return 1
	}
	return 0
}

// restarter starts VMs as their policies ask for, until none waits any more. Where
// another process does, it returns at once.
func (c *core) restarter(ctx context.Context) error {
	for {
		lock, err := fsx.TryLock(c.restartLock())
		if errors.Is(err, fsx.ErrLocked) {
			return nil
		}
		if err != nil {
			return err
		}
		err = c.restartAll(ctx)
		lock.Unlock()
		if err != nil {
			return err
		}
		// One that came after the last look was not told to anybody else.
		waiting, err := c.waitingVMs(ctx)
		if err != nil || len(waiting) == 0 {
			return err
		}
	}
}

// waitingVMs are the VMs that wait for a restart.
func (c *core) waitingVMs(ctx context.Context) ([]*mvm.VMInstanceItem, error) {
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	return st.ListRestarts(ctx)
}

// restartPoll is the pause between looks at which VMs wait.
const restartPoll = 200 * time.Millisecond

// restartAll restarts each VM that waits when it is due, and returns when none
// waits any more.
func (c *core) restartAll(ctx context.Context) error {
	var mu sync.Mutex
	busy := map[string]bool{} // by id
	var g errgroup.Group
	defer func() { _ = g.Wait() }()
	slots := make(chan struct{}, parallelVerbs)
	for ctx.Err() == nil {
		waiting, err := c.waitingVMs(ctx)
		if err != nil && !passes(err) {
			return err
		}
		mu.Lock()
		working := len(busy) > 0
		next := restartPoll
		for _, vm := range waiting {
			if busy[vm.ID] {
				continue
			}
			if d := dueIn(vm); d > 0 {
				next = min(next, d)
				continue
			}
			busy[vm.ID] = true
			g.Go(func() error {
				slots <- struct{}{}
				c.restart(ctx, vm)
				<-slots
				mu.Lock()
				defer mu.Unlock()
				delete(busy, vm.ID)
				return nil
			})
		}
		mu.Unlock()
		if err == nil && len(waiting) == 0 && !working {
			return nil
		}
		pause(ctx, next)
	}
	return ctx.Err()
}

// errNoRestart says that a VM does not wait for a restart any more.
var errNoRestart = errors.New("the restart was cancelled")

// restart starts a VM that waits for it, and notes when to try again when that
// fails for a reason that may pass.
func (c *core) restart(ctx context.Context, vm *mvm.VMInstanceItem) {
	at := vm.Options.RestartAt
	vm.Options.RestartCount++
	err := c.startIf(ctx, c.st, vm, "restarted by its policy ("+string(vm.Options.Restart)+")", func(now *mvm.VMInstanceItem) error {
		if now.Options.RestartAt != at {
			return errNoRestart
		}
		return nil
	})
	if err == nil || errors.Is(err, errNoRestart) {
		return
	}
	if errors.Is(err, mvm.ErrBusy) { // the command that works on it decides
		pause(ctx, restartPoll)
		return
	}
	_ = c.st.Tx(context.WithoutCancel(ctx), func(tx *store.Tx) error { // else it is tried again at once
		now, err2 := tx.GetVM(ctx, vm.ID)
		if err2 != nil || now.Options.RestartAt != at || !waitsForRestart(now) {
			return err2
		}
		cause := "restart failed: " + strings.ReplaceAll(err.Error(), "\n", "; ")
		now.Options.RestartAt = ""
		if passes(err) {
			delay := nextDelay(now)
			now.Options.RestartAt, now.Options.RestartDelayMS = stamp(time.Now().Add(delay)), int(delay.Milliseconds())
			cause += "; tries again in " + delay.String()
		}
		now.StatusReason = cause
		return write(ctx, tx, now, store.EventRestart, cause)
	})
}

// cancelRestart stops a VM that waits for its restart.
func (c *core) cancelRestart(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) error {
	return st.Tx(ctx, func(tx *store.Tx) error {
		now, err := tx.GetVM(ctx, vm.ID)
		if err != nil {
			return err
		}
		if !waitsForRestart(now) {
			return mvm.Errorf(mvm.ErrBusy, "it is being started again just now").WithHint("try again in a moment")
		}
		now.Options.RestartAt = ""
		*vm = *now
		return settle(ctx, tx, vm, mvm.StatusStopped, "stopped as asked, while it waited for its restart")
	})
}
