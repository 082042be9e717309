package api

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
)

// actStep is the one step of a verb whose effect is not undone but repeated:
// what it began is found and finished by the same verb.
type actStep struct{ do func(context.Context) error }

func (s *actStep) Kind() string { return "act" }

func (s *actStep) Apply(ctx context.Context) error { return s.do(ctx) }

func (s *actStep) Revert(context.Context) error { return nil }

// withClaim runs a verb on a VM that no other command can move meanwhile, and
// writes down the phase it ends in. When it fails or dies, the VM gets the phase
// back that it had.
func (c *core) withClaim(ctx context.Context, vm *mvm.VMInstanceItem, verb mvm.Verb, success mvm.VMStatus, cause string, do func(context.Context) error) error {
	return c.claimFor(ctx, vm, verb, success, cause, &actStep{do})
}

// claimFor is withClaim with a step that knows how to take its effect back.
func (c *core) claimFor(ctx context.Context, vm *mvm.VMInstanceItem, verb mvm.Verb, success mvm.VMStatus, cause string, step op.Step) error {
	undo, err := json.Marshal(claimed{vm.Status, vm.StatusReason})
	if err != nil {
		return err
	}
	return c.journal.Run(ctx, op.Op{
		Kind: "vm." + string(verb), Subject: vm.Name, SubjectID: vm.ID, UndoData: undo,
		Reserve: func(tx *store.Tx) error {
			before, err := tx.ClaimVM(ctx, vm.ID, verb)
			if err != nil {
				return err
			}
			if before.Status != vm.Status {
				return mvm.Errorf(mvm.ErrConflict, "it is %s by now", before.Status).WithHint("see 'mvm vm ls', then try again")
			}
			refresh(vm, before)
			return nil
		},
		Steps:  []op.Step{step},
		Commit: func(tx *store.Tx) error { return settle(ctx, tx, vm, success, cause) },
	})
}

// refresh takes over of a VM's row what may have changed since vm was read, in the
// same phase: it may have been started anew, by another command or its policy.
func refresh(vm, row *mvm.VMInstanceItem) {
	vm.Handle, vm.PID, vm.ProcessStartTime, vm.RelayPID, vm.ExitCode = row.Handle, row.PID, row.ProcessStartTime, row.RelayPID, row.ExitCode
	o := row.Options
	vm.Options.RestartCount, vm.Options.RestartAt, vm.Options.RestartDelayMS = o.RestartCount, o.RestartAt, o.RestartDelayMS
}

// settle writes down the phase that a VM is in now, and why.
func settle(ctx context.Context, tx *store.Tx, vm *mvm.VMInstanceItem, to mvm.VMStatus, cause string) error {
	switch {
	case vm.Status == to: // the reason for the phase stays
	case to == mvm.StatusCrashed:
		vm.StatusReason = cause
	default:
		vm.StatusReason = ""
	}
	vm.Status = to
	if !to.Active() {
		vm.PID, vm.ProcessStartTime, vm.RelayPID, vm.Handle, vm.NocloudNetPID = 0, nil, nil, nil, nil
	}
	return write(ctx, tx, vm, store.EventState, cause)
}

// write writes a VM's row, and an event that says from which phase it came to the
// one that it has now. Where that is the same, something else was done to it.
func write(ctx context.Context, tx *store.Tx, vm *mvm.VMInstanceItem, kind, cause string) error {
	row, err := tx.GetVM(ctx, vm.ID)
	if err != nil {
		return err
	}
	if err := tx.UpdateVM(ctx, vm); err != nil {
		return err
	}
	if row.Status == vm.Status && kind == store.EventState {
		kind = store.EventAction
	}
	return tx.AppendEvent(ctx, event(vm, kind, row.Status, cause))
}

func event(vm *mvm.VMInstanceItem, kind string, from mvm.VMStatus, cause string) *store.Event {
	return &store.Event{VMID: vm.ID, VMName: vm.Name, Kind: kind, From: string(from), To: string(vm.Status), Cause: cause, ExitCode: vm.ExitCode}
}

// goneEvent is the event of a VM's removal.
func goneEvent(vm *mvm.VMInstanceItem, cause string) *store.Event {
	e := event(vm, store.EventRemoved, vm.Status, cause)
	e.To = "removed"
	return e
}

// newJournal makes the journal and tells it how to take back what an operation
// reserved, and what to note when that does not work.
func (c *core) newJournal(st *store.Store) *op.Journal {
	j := op.New(st, c.paths.ops(), c.decoders())
	const notMade = "its creation failed or was interrupted, and was taken back"
	j.OnUndo(opCreate, func(tx *store.Tx, vmID string, _ []byte) error { return forget(tx, vmID, notMade) })
	j.OnFinish(opRemove, func(tx *store.Tx, vmID string, _ []byte) error { return forget(tx, vmID, "removed as asked") })
	j.OnFinish(opVolumeRemove, func(tx *store.Tx, id string, _ []byte) error { return tx.DeleteVolume(tx.Context(), id) })
	j.OnUndo(opAttach, unattach)
	j.OnUndo(opVolumeResize, func(tx *store.Tx, id string, _ []byte) error { return c.recordVolumeSize(tx, id) })
	stuck := func(tx *store.Tx, vmID string, _ []byte, reason string) error {
		vm, err := tx.GetVM(tx.Context(), vmID)
		if errors.Is(err, mvm.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		vm.Status, vm.StatusReason, vm.Options.RestartAt = mvm.StatusError, reason, ""
		return write(tx.Context(), tx, vm, store.EventState, reason)
	}
	j.OnStuck(opCreate, stuck)
	j.OnStuck(opRemove, stuck)
	j.OnUndo(opRestore, func(tx *store.Tx, vmID string, volumes []byte) error {
		if err := forget(tx, vmID, notMade); err != nil {
			return err
		}
		return forgetVolumes(tx, volumes)
	})
	j.OnStuck(opRestore, stuck)
	j.OnUndo(opSnapshot, func(tx *store.Tx, _ string, snapshotID []byte) error {
		if len(snapshotID) == 0 { // it went to files of the user's
			return nil
		}
		return tx.DeleteSnapshot(tx.Context(), string(snapshotID))
	})
	c.networkUndo(j)
	c.hostUndo(j)
	j.OnFinish(opSnapshotRemove, func(tx *store.Tx, id string, _ []byte) error { return tx.DeleteSnapshot(tx.Context(), id) })
	for _, verb := range []mvm.Verb{mvm.VerbLoad, mvm.VerbUpdate, mvm.VerbStart, mvm.VerbStop, mvm.VerbPause, mvm.VerbResume} {
		j.OnUndo("vm."+string(verb), func(tx *store.Tx, vmID string, data []byte) error { return unclaim(tx, vmID, verb, data) })
		j.OnStuck("vm."+string(verb), stuck)
	}
	return j
}

// forget removes the rows of a VM.
func forget(tx *store.Tx, vmID, cause string) error {
	if vm, err := tx.GetVM(tx.Context(), vmID); err == nil {
		if err := tx.AppendEvent(tx.Context(), goneEvent(vm, cause)); err != nil {
			return err
		}
	}
	if err := tx.DeleteLeasesOfVM(tx.Context(), vmID); err != nil {
		return err
	}
	return tx.DeleteVM(tx.Context(), vmID)
}

// unclaim gives a VM the phase back that it had. One that was to be stopped and
// whose VMM is gone by now is stopped; any other VMM that is gone is found like
// one that ended by itself.
func unclaim(tx *store.Tx, vmID string, verb mvm.Verb, data []byte) error {
	ctx := tx.Context()
	vm, err := tx.GetVM(ctx, vmID)
	if err != nil {
		if errors.Is(err, mvm.ErrNotFound) {
			return nil
		}
		return err
	}
	var was claimed
	if err := json.Unmarshal(data, &was); err != nil {
		return mvm.Errorf(mvm.ErrBroken, "the journal's record of VM %s: %w", mvm.Quote(vm.Name), err)
	}
	vm.Status, vm.StatusReason = was.Status, was.Reason
	if verb == mvm.VerbStop && hasEnded(vm) {
		return settle(ctx, tx, vm, mvm.StatusStopped, "stopped by a command that was interrupted")
	}
	return write(ctx, tx, vm, store.EventUndone, string(verb)+" failed or was interrupted, and was taken back")
}

// alive reports whether the VMM that a VM was started with still runs.
func alive(vm *mvm.VMInstanceItem) bool {
	h, err := handleOf(vm)
	return err == nil && proc.Alive(h.VMM)
}
