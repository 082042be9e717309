package op

import (
	"context"

	"github.com/mvmctl/mvm/internal/store"
)

// Forward runs an operation that is never taken back, such as removing an
// object: it reserves, notes all steps in that same transaction, and calls their
// Revert in the order given; then the function registered by OnFinish for its
// Kind removes the object's rows, in the transaction that drops the operation.
// Commit is not used.
//
// The first step that fails ends it: what comes later may rely on it (a disk is
// not removed under a running VMM). The operation is kept and OnStuck called;
// Forward on the same SubjectID begins anew, and Recover goes on where it ended,
// as it does after a crash. Cancelling ctx ends it between two steps in the same
// way. What earlier operations on SubjectID have left unreverted is dropped with
// this one, whose steps have to cover it.
func (j *Journal) Forward(ctx context.Context, o Op) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := j.begin(ctx, cancel, &o, true)
	if err != nil {
		return err
	}
	if err := j.fault.at(o.Kind, "reserve", "after", cancel); err != nil {
		return r.stop(ctx, err, nil)
	}
	return r.goOn(ctx)
}

// goOn does what is left of a forward operation.
func (r *running) goOn(ctx context.Context) error {
	var done []int
	for _, b := range r.begun {
		err := ctx.Err()
		if err != nil {
			err = cancelled(err)
		} else {
			err = r.revert(ctx, b)
		}
		if err != nil {
			return r.stop(ctx, err, done)
		}
		done = append(done, b.n)
	}
	ctx = context.WithoutCancel(ctx)
	finish, _ := get(r.j, r.j.finish, r.row.Kind)
	err := r.end(ctx, "finish", func(tx *store.Tx, subjectID string, data []byte) error {
		if err := r.dropEarlier(ctx, tx); err != nil {
			return err
		}
		if finish == nil {
			return nil
		}
		return finish(tx, subjectID, data)
	})
	if err != nil {
		return r.stop(ctx, err, done)
	}
	return nil
}

// stop keeps the operation, with what is left to do, for the next command.
func (r *running) stop(ctx context.Context, first error, done []int) error {
	if u := r.fail(context.WithoutCancel(ctx), nil, []error{first}, done); len(u.Undo) > 1 {
		return &UndoError{First: first, Undo: u.Undo[1:]}
	}
	return first
}

// dropEarlier drops what failed or interrupted operations on the object have
// left: it is gone with the object.
func (r *running) dropEarlier(ctx context.Context, tx *store.Tx) error {
	if r.row.SubjectID == "" {
		return nil
	}
	rows, err := tx.ListOps(ctx, r.row.SubjectID)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.ID == r.row.ID {
			continue
		}
		if err := tx.DeleteOp(ctx, row.ID); err != nil {
			return err
		}
	}
	return nil
}
