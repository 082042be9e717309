package api

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// actStep is the one step of a verb whose effect is not undone but repeated:
// what it began is found and finished by the same verb.
type actStep struct{ do func(context.Context) error }

func (s *actStep) Kind() string { return "act" }

func (s *actStep) Apply(ctx context.Context) error { return s.do(ctx) }

func (s *actStep) Revert(context.Context) error { return nil }

// withClaim runs a verb on a VM that no other command can move meanwhile, and
// writes down the phase it ends in. When it fails or dies, the VM gets the phase
// back that its process shows.
func (c *core) withClaim(ctx context.Context, vm *mvm.VMInstanceItem, verb mvm.Verb, success mvm.VMStatus, cause string, do func(context.Context) error) error {
	undo, err := json.Marshal(claimed{vm.Status})
	if err != nil {
		return err
	}
	return c.journal.Run(ctx, op.Op{
		Kind: "vm." + string(verb), Subject: vm.Name, SubjectID: vm.ID, UndoData: undo,
		Reserve: func(tx *store.Tx) error { _, err := tx.ClaimVM(ctx, vm.ID, verb); return err },
		Steps:   []op.Step{&actStep{do}},
		Commit:  func(tx *store.Tx) error { return settle(ctx, tx, vm, success, cause) },
	})
}

// settle writes down the phase that a VM is in now, and why.
func settle(ctx context.Context, tx *store.Tx, vm *mvm.VMInstanceItem, to mvm.VMStatus, cause string) error {
	from := vm.Status
	vm.Status, vm.StatusReason, vm.UpdatedAt = to, "", now()
	if !to.Active() {
		vm.PID, vm.ProcessStartTime, vm.RelayPID, vm.Handle = 0, nil, nil, nil
		if to == mvm.StatusCrashed {
			vm.StatusReason = cause
		}
	}
	if err := tx.UpdateVM(ctx, vm); err != nil {
		return err
	}
	return tx.AppendEvent(ctx, event(vm, "state", from, cause))
}

func event(vm *mvm.VMInstanceItem, kind string, from mvm.VMStatus, cause string) *store.Event {
	return &store.Event{At: now(), VMID: vm.ID, VMName: vm.Name, Kind: kind, From: string(from), To: string(vm.Status), Cause: cause, ExitCode: vm.ExitCode}
}

// newJournal makes the journal and tells it how to take back what an operation
// reserved, and what to note when that does not work.
func (c *core) newJournal(st *store.Store) *op.Journal {
	j := op.New(st, c.paths.ops(), c.decoders())
	j.OnUndo(opCreate, func(tx *store.Tx, vmID string, _ []byte) error { return forget(tx, vmID) })
	j.OnFinish(opRemove, func(tx *store.Tx, vmID string, _ []byte) error {
		if vm, err := tx.GetVM(tx.Context(), vmID); err == nil {
			e := event(vm, "removed", vm.Status, "removed as asked")
			e.To = "removed"
			if err := tx.AppendEvent(tx.Context(), e); err != nil {
				return err
			}
		}
		return forget(tx, vmID)
	})
	j.OnFinish(opVolumeRemove, func(tx *store.Tx, id string, _ []byte) error { return tx.DeleteVolume(tx.Context(), id) })
	j.OnUndo(opAttach, unattach)
	j.OnUndo(opVolumeResize, func(tx *store.Tx, id string, _ []byte) error { return c.recordVolumeSize(tx, id) })
	stuck := func(tx *store.Tx, vmID string, _ []byte, reason string) error {
		_, err := tx.SetVMStatus(tx.Context(), vmID, mvm.StatusError, reason)
		return err
	}
	j.OnStuck(opCreate, stuck)
	j.OnStuck(opRemove, stuck)
	j.OnUndo(opRestore, func(tx *store.Tx, vmID string, volumes []byte) error {
		if err := forget(tx, vmID); err != nil {
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
	j.OnFinish(opSnapshotRemove, func(tx *store.Tx, id string, _ []byte) error { return tx.DeleteSnapshot(tx.Context(), id) })
	for _, verb := range []mvm.Verb{mvm.VerbLoad, mvm.VerbUpdate, mvm.VerbStart, mvm.VerbStop, mvm.VerbPause, mvm.VerbResume} {
		j.OnUndo("vm."+string(verb), unclaim)
		j.OnStuck("vm."+string(verb), stuck)
	}
	return j
}

// forget removes the rows of a VM.
func forget(tx *store.Tx, vmID string) error {
	if err := tx.DeleteLeasesOfVM(tx.Context(), vmID); err != nil {
		return err
	}
	return tx.DeleteVM(tx.Context(), vmID)
}

// unclaim gives a VM the phase back that it had, unless its VMM is gone.
func unclaim(tx *store.Tx, vmID string, data []byte) error {
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
	to := was.Status
	if to.Active() && !alive(vm) {
		to = mvm.StatusStopped
	}
	return settle(ctx, tx, vm, to, "interrupted")
}

// alive reports whether the VMM that a VM was started with still runs.
func alive(vm *mvm.VMInstanceItem) bool {
	var h vmm.Handle
	return len(vm.Handle) > 0 && json.Unmarshal(vm.Handle, &h) == nil && proc.Alive(h.VMM)
}
