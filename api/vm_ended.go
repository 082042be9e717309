package api

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// endedCommand is the first argument of the short-lived process that a supervisor
// starts when its VMM has ended; the directories of the client and a token with
// the VM's id follow. It writes the end down when it happens, so that the
// supervisor needs no database.
const endedCommand = "__ended"

// opEnded is the operation that writes down that a VMM has ended by itself.
const opEnded = "vm.ended"

// Pauses between tries to write an end down, while the database is locked or full
// or another command holds the VM.
const (
	endedFirstPause = 20 * time.Millisecond
	endedLastPause  = time.Second
)

// endedLimit is when that is given up. What was not written down is seen by the
// next command that looks at the VM.
const endedLimit = time.Hour

// childArgs are the directories of a client, as arguments of a child.
func (c *core) childArgs(command string, more ...string) []string {
	return append([]string{command, c.paths.cache, c.paths.config, c.paths.temp}, more...)
}

// childCore makes the core that childArgs describe, and returns the arguments
// that followed. change puts a test's machine in.
func childCore(args []string, change func(*core)) (*core, []string, error) {
	if len(args) < 3 {
		return nil, nil, errors.New("too few arguments")
	}
	c, err := newCore(Config{CacheDir: args[0], ConfigDir: args[1], TempDir: args[2]})
	if err == nil && change != nil {
		change(c)
	}
	return c, args[3:], err
}

// endedMain is that process. It returns the exit status.
func endedMain(args []string, change func(*core)) int {
	c, rest, err := childCore(args, change)
	if err != nil || len(rest) != 1 {
		return 2
	}
	defer func() { _ = c.close() }()
	ctx, cancel := context.WithTimeout(context.Background(), endedLimit)
	defer cancel()
	if err := c.recordEnd(ctx, strings.TrimPrefix(rest[0], supervisor.EndedToken(""))); err != nil {
		return 1
	}
	return 0
}

// recordEnd writes down that the VMM of a VM has ended, unless it runs, was
// started again, or a command that ends it writes that down itself.
func (c *core) recordEnd(ctx context.Context, vmID string) error {
	for d := endedFirstPause; ; d = min(2*d, endedLastPause) {
		err := c.tryRecordEnd(ctx, vmID)
		if !passes(err) || ctx.Err() != nil {
			return err
		}
		pause(ctx, d)
	}
}

// passes reports whether what failed may go well when it is tried again.
func passes(err error) bool {
	if err == nil {
		return false
	}
	kind := mvm.KindOf(err)
	return kind == mvm.ErrBusy || kind == mvm.ErrUnavailable
}

func (c *core) tryRecordEnd(ctx context.Context, vmID string) error {
	st, err := c.open(ctx)
	if err != nil {
		return err
	}
	if _, err := c.journal.Recover(ctx); err != nil { // of who held the VM and died since
		return err
	}
	vm, err := st.GetVM(ctx, vmID)
	switch {
	case errors.Is(err, mvm.ErrNotFound):
		return nil
	case err != nil:
		return err
	case vm.Status == mvm.StatusStarting || vm.Status == mvm.StatusStopping:
		ops, err := st.ListOps(ctx, vmID)
		if err != nil || len(ops) == 0 {
			return err
		}
		return mvm.Errorf(mvm.ErrBusy, "another command holds it") // and will say what became of it
	case !hasEnded(vm):
		return nil
	}
	err = c.endByItself(ctx, vm)
	if errors.Is(err, errNotEnded) {
		return nil
	}
	if err == nil && vm.Options.RestartAt != "" {
		return c.wakeRestarter(ctx)
	}
	return err
}

// hasEnded reports whether a VM is stored as one that has a VMM, but has none.
func hasEnded(vm *mvm.VMInstanceItem) bool {
	return runs(vm) && !alive(vm)
}

// errNotEnded says that somebody else has dealt with the end of a VM.
var errNotEnded = errors.New("the VM is not one that has ended")

// endByItself writes down the end of a VM under its claim, and removes its tap:
// a stopped VM has none. vm is afterwards as it is stored.
func (c *core) endByItself(ctx context.Context, vm *mvm.VMInstanceItem) error {
	death := c.autopsy(ctx, vm)
	return c.journal.Run(ctx, op.Op{
		Kind: opEnded, Subject: vm.Name, SubjectID: vm.ID,
		Reserve: func(tx *store.Tx) error {
			now, err := tx.GetVM(ctx, vm.ID)
			if err != nil {
				return err
			}
			if !hasEnded(now) {
				return errNotEnded
			}
			*vm = *now
			return nil
		},
		Steps: []op.Step{&actStep{func(ctx context.Context) error {
			// What cannot be removed is taken up by the next start, or the removal.
			_ = (&tapStep{c: c, VMID: vm.ID, Name: vm.TapDevice}).Revert(ctx)
			_ = c.endServer(ctx, vm)
			_, _ = c.refreshDNS(ctx, vm.NetworkID, vm.ID)
			_ = c.clearVMM(ctx, vm.ID)
			return nil
		}}},
		Commit: func(tx *store.Tx) error { return death.settle(ctx, tx, vm) },
	})
}

// death is how a VM ended that no command has ended.
type death struct {
	to       mvm.VMStatus
	cause    string
	code     *int
	at       time.Time
	rebooted bool // the host did
}

// settle writes it down, with the restart that the VM's policy asks for.
func (d death) settle(ctx context.Context, tx *store.Tx, vm *mvm.VMInstanceItem) error {
	vm.ExitCode = d.code
	cause := d.cause
	if delay, again := planRestart(vm, d); again {
		vm.Options.RestartDelayMS = int(delay.Milliseconds())
		vm.Options.RestartAt = stamp(time.Now().Add(delay))
		cause += "; restarts in " + delay.String()
	}
	return settle(ctx, tx, vm, d.to, cause)
}

// autopsy tells from what the supervisor has left how a VMM ended.
func (c *core) autopsy(ctx context.Context, vm *mvm.VMInstanceItem) death {
	h, _ := handleOf(vm) // without one there is no file either
	exit, err := c.exitOf(ctx, vm, h)
	switch {
	case err == nil && exit.Code == 0 && exit.Signal == "":
		return death{to: mvm.StatusStopped, cause: "the guest powered off", code: &exit.Code, at: exit.At}
	case err == nil && exit.Code >= 0:
		return death{to: mvm.StatusCrashed, cause: firstOf(exit.Reason, "the VMM ended by itself"), code: &exit.Code, at: exit.At}
	case err == nil:
		return death{to: mvm.StatusCrashed, cause: firstOf(exit.Reason, "nothing tells how the VMM ended"), at: exit.At}
	case proc.Rebooted(h.VMM):
		return death{to: mvm.StatusCrashed, cause: "the host was rebooted while it ran", at: time.Now(), rebooted: true}
	}
	cause := "the VMM is gone, and so is its supervisor: nothing tells how it ended"
	if failure := supervisor.Failure(h.Dir); failure != "" {
		cause += "; the supervisor failed: " + failure
	}
	return death{to: mvm.StatusCrashed, cause: cause, at: time.Now()}
}

// exitFileLimit bounds how long a supervisor has to write down its VMM's end, from
// when that is seen.
const exitFileLimit = 5 * time.Second

// exitOf reads how the last VMM of a VM ended, in the words of its driver. While
// the supervisor is about to write that down, it is waited for.
func (c *core) exitOf(ctx context.Context, vm *mvm.VMInstanceItem, h vmm.Handle) (vmm.Exit, error) {
	dir := c.paths.vm(vm.ID)
	exit, err := vmm.ReadExit(dir)
	if err != nil {
		soon, cancel := context.WithTimeout(ctx, exitFileLimit)
		defer cancel()
		for last := false; err != nil && !last; exit, err = vmm.ReadExit(dir) {
			last = !proc.Alive(h.Supervisor) || soon.Err() != nil // it may have written just before
			if !last {
				pause(soon, exitFilePoll)
			}
		}
		if err != nil {
			return exit, err
		}
	}
	if e, ok := c.driverOf(vm.Hypervisor).(vmm.Explainer); ok {
		exit = e.Explain(h, exit)
	}
	return exit, nil
}

const exitFilePoll = 5 * time.Millisecond

// pause waits, or less when ctx ends before.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// handleOf reads the handle of a VM that runs, or did when its row was written.
func handleOf(vm *mvm.VMInstanceItem) (vmm.Handle, error) {
	var h vmm.Handle
	if len(vm.Handle) == 0 {
		return h, os.ErrNotExist
	}
	return h, json.Unmarshal(vm.Handle, &h)
}
