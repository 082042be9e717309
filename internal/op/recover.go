package op

import (
	"context"
	"errors"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/store"
)

// Recovered is an operation of a dead owner that Recover took care of.
type Recovered struct {
	Kind      string // "vm.create"
	Subject   string
	SubjectID string
	Forward   bool  // it was finished; else taken back
	Kept      bool  // left in place as asked for by KeepOnFailure
	Err       error // it could not; a later Recover tries again
}

// Recover takes back, or finishes, the operations whose owners are dead, and
// retries those that failed at that before. Where there are none it costs one
// query. The error is about the journal itself; that of an operation is in its
// entry.
func (j *Journal) Recover(ctx context.Context) ([]Recovered, error) {
	if j.fault.err != nil {
		return nil, j.fault.err
	}
	rows, err := j.st.ListOps(ctx, "")
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(rows))
	var done []Recovered
	// Newest first: a removal that follows a failed creation knows more.
	for _, row := range slices.Backward(rows) {
		known[row.ID] = true
		if err := ctx.Err(); err != nil {
			return done, cancelled(err)
		}
		r, err := j.adopt(ctx, row.ID)
		if err != nil {
			return done, err
		}
		if r == nil {
			continue
		}
		done = append(done, r.resume(ctx))
	}
	return done, j.removeOrphans(known)
}

// adopt takes over the operation of a dead owner, or returns nil when the owner
// lives or somebody else has recovered it meanwhile.
func (j *Journal) adopt(ctx context.Context, id string) (*running, error) {
	own, err := j.takeOver(id)
	if errors.Is(err, fsx.ErrLocked) {
		return nil, nil
	}
	if err != nil {
		return nil, lockError(err, j.dir)
	}
	row, err := j.st.GetOp(ctx, id) // again: the lock may have been free because it has ended
	if err != nil {
		own.release(errors.Is(err, mvm.ErrNotFound))
		if errors.Is(err, mvm.ErrNotFound) {
			return nil, nil
		}
		return nil, err
	}
	steps, err := j.st.ListOpSteps(ctx, id)
	if err != nil {
		own.release(false)
		return nil, err
	}
	r := &running{j: j, own: own, row: row, cancel: func() {}}
	for _, s := range steps {
		step, err := j.decode(s.Kind, s.Data)
		r.begun = append(r.begun, begunStep{n: s.N, kind: s.Kind, step: step, err: err})
	}
	return r, nil
}

// resume ends an adopted operation.
func (r *running) resume(ctx context.Context) Recovered {
	done := Recovered{Kind: r.row.Kind, Subject: r.row.Subject, SubjectID: r.row.SubjectID, Forward: r.row.Forward}
	if r.row.Forward {
		done.Err = r.goOn(ctx)
		return done
	}
	done.Kept, done.Err = r.takeBack(ctx, nil)
	return done
}

// takeBack reverts the begun steps, newest first and past errors, then undoes
// the reservation and drops the operation in one transaction. Effects go first,
// as that is what frees space on a full disk. It returns the error to give to
// the caller, first being why it is taken back.
func (r *running) takeBack(ctx context.Context, first error) (kept bool, err error) {
	ctx = context.WithoutCancel(ctx)
	if r.row.Keep {
		return true, r.keep(ctx, first)
	}
	var errs []error
	var reverted []int
	for _, b := range slices.Backward(r.begun) {
		if err := r.revert(ctx, b); err != nil {
			errs = append(errs, err)
			continue
		}
		reverted = append(reverted, b.n)
	}
	if len(errs) == 0 {
		undo, _ := get(r.j, r.j.undo, r.row.Kind)
		err := r.end(ctx, "undo", undo)
		if err == nil {
			return false, first
		}
		errs = append(errs, err)
	}
	return false, r.fail(ctx, first, errs, reverted)
}

// revert reverts one step with a time limit of its own.
func (r *running) revert(ctx context.Context, b begunStep) error {
	if b.err != nil {
		return b.err
	}
	ctx, cancel := context.WithTimeout(ctx, revertLimit)
	defer cancel()
	f := r.j.fault
	if err := f.atStep(r.row.Kind, "revert:", b.n, b.kind, "before", cancel); err != nil {
		return err
	}
	if err := b.step.Revert(ctx); err != nil {
		return err
	}
	return f.atStep(r.row.Kind, "revert:", b.n, b.kind, "after", cancel)
}

// end drops the operation together with what f changes.
func (r *running) end(ctx context.Context, point string, f UndoFunc) error {
	if err := r.j.fault.at(r.row.Kind, point, "before", func() {}); err != nil {
		return err
	}
	err := r.j.st.Tx(ctx, func(tx *store.Tx) error {
		if f != nil {
			if err := f(tx, r.row.SubjectID, r.row.Data); err != nil {
				return err
			}
		}
		return tx.DeleteOp(ctx, r.row.ID)
	})
	if err != nil {
		return err
	}
	_ = r.j.fault.at(r.row.Kind, point, "after", func() {})
	r.own.release(true)
	return nil
}

// fail keeps the operation for the next Recover, without the steps that are
// done. Should even that not be written, the row says "running" and its lock is
// free, which Recover treats alike.
func (r *running) fail(ctx context.Context, first error, errs []error, done []int) *UndoError {
	why := reason(errs...)
	if first != nil {
		why = reason(first) + " (cleaning up: " + why + ")"
	}
	err := r.j.st.Tx(ctx, func(tx *store.Tx) error {
		for _, n := range done {
			if err := tx.DeleteOpStep(ctx, r.row.ID, n); err != nil {
				return err
			}
		}
		if err := tx.FailOp(ctx, r.row.ID, why); err != nil {
			return err
		}
		return r.noteStuck(tx, why)
	})
	if err != nil {
		errs = append(errs, err)
	}
	r.own.release(false)
	return &UndoError{First: first, Undo: errs}
}

// keep drops the operation and leaves all else as it is.
func (r *running) keep(ctx context.Context, first error) error {
	why := "interrupted"
	if first != nil {
		why = reason(first)
	}
	err := r.end(ctx, "undo", func(tx *store.Tx, _ string, _ []byte) error { return r.noteStuck(tx, why) })
	if err != nil {
		r.own.release(false)
		return &UndoError{First: first, Undo: []error{err}}
	}
	return first
}

func (r *running) noteStuck(tx *store.Tx, why string) error {
	if f, ok := get(r.j, r.j.stuck, r.row.Kind); ok {
		return f(tx, r.row.SubjectID, r.row.Data, why)
	}
	return nil
}

// hasRow reports whether an operation has a row; when in doubt it has.
func (j *Journal) hasRow(id string) bool {
	_, err := j.st.GetOp(context.Background(), id)
	return !errors.Is(err, mvm.ErrNotFound)
}
