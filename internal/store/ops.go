package store

import (
	"context"
	"database/sql"
)

// OpRow is an operation that is under way, was interrupted, or failed and could
// not be undone. Package op gives it its meaning.
type OpRow struct {
	ID        string
	Kind      string // "vm.create"
	Subject   string // the object's name
	SubjectID string
	Forward   bool // it is finished, not reverted, by whoever finds it
	Keep      bool // what it made is left in place when it fails
	PID       int  // of its owner, for messages
	State     OpState
	Data      []byte // for the function that undoes or finishes it
	Reason    string // why it failed
	StartedAt string
}

// OpState says whether an operation went wrong.
type OpState string

// The states of an operation.
const (
	OpRunning OpState = "running" // by a live owner, or interrupted
	OpFailed  OpState = "failed"  // and could not be undone; see Reason
)

// OpStepRow is a step of an operation of which the effect may exist.
type OpStepRow struct {
	N    int
	Kind string
	Data []byte
}

var ops = table[OpRow]{
	name: "ops", noun: "operation",
	cols: []string{"id", "kind", "subject", "subject_id", "forward", "keep", "pid", "state", "data", "reason", "started_at"},
	fields: func(o *OpRow) []any {
		return []any{&o.ID, &o.Kind, &o.Subject, &o.SubjectID, &o.Forward, &o.Keep, &o.PID, &o.State, &o.Data, &o.Reason, &o.StartedAt}
	},
}

// InsertOp adds an operation and, if empty, sets when it began.
func (q Queries) InsertOp(ctx context.Context, o *OpRow) error {
	if o.StartedAt == "" {
		o.StartedAt = now()
	}
	return ops.insert(ctx, q, o)
}

// GetOp returns an operation by id, or ErrNotFound.
func (q Queries) GetOp(ctx context.Context, id string) (*OpRow, error) { return ops.get(ctx, q, id) }

// ListOps returns the operations on the object with an id, or all when
// subjectID is "", oldest first.
func (q Queries) ListOps(ctx context.Context, subjectID string) ([]*OpRow, error) {
	return ops.where(ctx, q, "? in ('', subject_id) order by started_at, rowid", subjectID)
}

// FailOp keeps an operation with the reason why it could not be undone.
func (q Queries) FailOp(ctx context.Context, id, reason string) error {
	_, err := q.exec(ctx, "update ops set state = ?, reason = ? where id = ?", string(OpFailed), reason, id)
	return q.fail(err)
}

// DeleteOp removes an operation and its steps. One that is gone is no error.
func (q Queries) DeleteOp(ctx context.Context, id string) error { return ops.remove(ctx, q, id) }

// InsertOpStep notes that a step of an operation is about to take effect.
func (q Queries) InsertOpStep(ctx context.Context, opID string, s OpStepRow) error {
	_, err := q.exec(ctx, "insert into op_steps (op_id, n, kind, data) values (?, ?, ?, ?)", opID, s.N, s.Kind, s.Data)
	return q.fail(err)
}

// DeleteOpStep forgets a step that was reverted.
func (q Queries) DeleteOpStep(ctx context.Context, opID string, n int) error {
	_, err := q.exec(ctx, "delete from op_steps where op_id = ? and n = ?", opID, n)
	return q.fail(err)
}

// ListOpSteps returns the steps of an operation in the order in which they began.
func (q Queries) ListOpSteps(ctx context.Context, opID string) ([]OpStepRow, error) {
	var steps []OpStepRow
	err := q.each(ctx, func(r *sql.Rows) error {
		var s OpStepRow
		err := r.Scan(&s.N, &s.Kind, &s.Data)
		steps = append(steps, s)
		return err
	}, "select n, kind, data from op_steps where op_id = ? order by n", opID)
	return steps, q.fail(err)
}
