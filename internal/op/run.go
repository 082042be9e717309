package op

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// running is an operation in this process.
type running struct {
	j      *Journal
	own    *owner
	row    *store.OpRow
	cancel context.CancelFunc
	begun  []begunStep
}

type begunStep struct {
	n    int
	kind string
	step Step
	err  error // the step cannot be decoded
}

// Run runs an operation. On success everything is done and committed. On failure,
// or when ctx ends, everything is as before and the first error is returned; when
// taking back failed too, the error is an *UndoError and a later Recover tries
// again. ErrBusy when another operation works on SubjectID.
func (j *Journal) Run(ctx context.Context, o Op) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := j.begin(ctx, cancel, &o, false)
	if err != nil {
		return err
	}
	err = r.apply(ctx, o)
	if err == nil {
		err = r.commit(ctx, o.Commit)
	}
	if err == nil {
		r.own.release(true)
		return nil
	}
	_, err = r.takeBack(ctx, err)
	return err
}

// begin takes the operation's lock, and reserves and writes its row in one
// transaction. Before it returns without error nothing has happened.
func (j *Journal) begin(ctx context.Context, cancel context.CancelFunc, o *Op, forward bool) (*running, error) {
	if j.fault.err != nil {
		return nil, j.fault.err
	}
	if o.Plan == nil {
		if err := j.known(o.Steps); err != nil {
			return nil, err
		}
	}
	own, err := j.newOwner()
	if err != nil {
		return nil, err
	}
	r := &running{j: j, own: own, cancel: cancel}
	err = j.st.Tx(ctx, func(tx *store.Tx) error {
		if err := j.exclude(ctx, tx, o, forward); err != nil {
			return err
		}
		if o.Reserve != nil {
			if err := o.Reserve(tx); err != nil {
				return err
			}
		}
		if o.Plan != nil {
			if o.Steps, err = o.Plan(); err != nil {
				return err
			}
			if err := j.known(o.Steps); err != nil {
				return err
			}
		}
		r.row = &store.OpRow{
			ID: own.id, Kind: o.Kind, Subject: o.Subject, SubjectID: o.SubjectID, Forward: forward, Keep: o.KeepOnFailure,
			PID: os.Getpid(), State: store.OpRunning, Data: o.UndoData,
		}
		if err := tx.InsertOp(ctx, r.row); err != nil {
			return err
		}
		if forward {
			return r.note(ctx, tx.Queries, o.Steps...)
		}
		return nil
	})
	if err != nil {
		own.release(true)
		return nil, err
	}
	return r, nil
}

// known refuses steps that no later command could revert.
func (j *Journal) known(steps []Step) error {
	for _, s := range steps {
		if _, ok := j.decoders[s.Kind()]; !ok {
			return mvm.Errorf(mvm.ErrInvalid, "step kind %s has no decoder", mvm.Quote(s.Kind()))
		}
	}
	return nil
}

// exclude refuses a second operation on one object. What a dead or failed
// operation has left is in the way of a new one, but not of removing the object.
func (j *Journal) exclude(ctx context.Context, tx *store.Tx, o *Op, forward bool) error {
	if o.SubjectID == "" {
		return nil
	}
	rows, err := tx.ListOps(ctx, o.SubjectID)
	if err != nil {
		return err
	}
	for _, row := range rows {
		alive, err := j.alive(row.ID)
		if err != nil {
			return lockError(err, j.dir)
		}
		if alive {
			return store.Busy(row)
		}
		if !forward && row.State == store.OpRunning {
			return mvm.Errorf(mvm.ErrBusy, "an earlier %s of %s was interrupted", row.Kind, mvm.Quote(row.Subject)).
				WithHint("try again; it is cleaned up first")
		}
		if !forward {
			return mvm.Errorf(mvm.ErrBroken, "an earlier %s of %s could not be undone: %s", row.Kind, mvm.Quote(row.Subject), row.Reason).
				WithHint("mend what the reason names and try again, or remove it")
		}
	}
	return nil
}

// note writes steps to the journal, from where the next process can revert them.
func (r *running) note(ctx context.Context, q store.Queries, steps ...Step) error {
	for _, s := range steps {
		data, err := json.Marshal(s)
		if err != nil {
			return mvm.Errorf(mvm.ErrInvalid, "step %s cannot be written down: %w", mvm.Quote(s.Kind()), err)
		}
		n := len(r.begun)
		if err := q.InsertOpStep(ctx, r.row.ID, store.OpStepRow{N: n, Kind: s.Kind(), Data: data}); err != nil {
			return err
		}
		r.begun = append(r.begun, begunStep{n: n, kind: s.Kind(), step: s})
	}
	return nil
}

// apply notes and applies one step after the other.
func (r *running) apply(ctx context.Context, o Op) error {
	kind, f := r.row.Kind, r.j.fault
	if err := f.at(kind, "reserve", "after", r.cancel); err != nil {
		return err
	}
	for n, s := range o.Steps {
		if err := ctx.Err(); err != nil {
			return cancelled(err)
		}
		if o.OnStep != nil {
			o.OnStep(s.Kind())
		}
		if err := r.note(ctx, r.j.st.Queries, s); err != nil {
			return err
		}
		if err := f.atStep(kind, "", n, s.Kind(), "before", r.cancel); err != nil {
			return err
		}
		if err := s.Apply(ctx); err != nil {
			return err
		}
		if err := f.atStep(kind, "", n, s.Kind(), "after", r.cancel); err != nil {
			return err
		}
	}
	return nil
}

// commit ends a successful operation in one transaction.
func (r *running) commit(ctx context.Context, commit func(*store.Tx) error) error {
	f := r.j.fault
	if err := f.at(r.row.Kind, "commit", "before", r.cancel); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return cancelled(err)
	}
	err := r.j.st.Tx(ctx, func(tx *store.Tx) error {
		if commit != nil {
			if err := commit(tx); err != nil {
				return err
			}
		}
		return tx.DeleteOp(tx.Context(), r.row.ID)
	})
	if err != nil {
		return err
	}
	// Past the commit point an error or a cancellation changes nothing.
	_ = f.at(r.row.Kind, "commit", "after", r.cancel)
	return nil
}

func cancelled(err error) error {
	return mvm.Errorf(mvm.ErrUnavailable, "interrupted: %w", err)
}

// UndoError is a failure after which not everything could be taken back.
type UndoError struct {
	First error   // why the operation failed; nil for one found by Recover
	Undo  []error // what could not be taken back
}

// Error says both on one line.
func (e *UndoError) Error() string {
	what := make([]string, len(e.Undo))
	for i, err := range e.Undo {
		what[i] = err.Error()
	}
	left := "cleaning up failed, the next command tries again: " + strings.Join(what, "; ")
	if e.First == nil {
		return left
	}
	return e.First.Error() + " (" + left + ")"
}

// Unwrap returns the first error first.
func (e *UndoError) Unwrap() []error {
	if e.First == nil {
		return e.Undo
	}
	return append([]error{e.First}, e.Undo...)
}

// reason is what is kept of errors in the database.
func reason(errs ...error) string {
	return strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; ")
}
