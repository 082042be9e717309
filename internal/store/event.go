package store

import (
	"context"
	"database/sql"
	"slices"
)

// Event is one change in the history of a VM. Events outlive their VM.
type Event struct {
	ID       int64  `json:"id"` // grows with time, never reused
	At       string `json:"at"`
	VMID     string `json:"vm_id"`
	VMName   string `json:"vm_name"`
	Kind     string `json:"kind"`
	From     string `json:"from"`
	To       string `json:"to"`
	Cause    string `json:"cause"`
	ExitCode *int   `json:"exit_code"`
}

// The kinds of event.
const (
	EventState   = "state"   // the VM went from one phase to another
	EventAction  = "action"  // something was done to it that left its phase
	EventUndone  = "undone"  // a command failed or was interrupted, and was taken back
	EventRestart = "restart" // its restart policy did not get what it wanted
	EventRemoved = "removed" // it is no more
)

// keepEvents bounds the history, so that a busy host's database does not grow
// for ever.
const keepEvents = 100_000

// AppendEvent adds an event and sets its ID and, if empty, its time. The oldest
// beyond 100,000 are dropped.
func (q Queries) AppendEvent(ctx context.Context, e *Event) error {
	if e.At == "" {
		e.At = now()
	}
	res, err := q.q.ExecContext(ctx, "insert into events (at, vm_id, vm_name, kind, from_, to_, cause, exit_code) values (?, ?, ?, ?, ?, ?, ?, ?)",
		e.At, e.VMID, e.VMName, e.Kind, e.From, e.To, e.Cause, e.ExitCode)
	if err != nil {
		return q.fail(err)
	}
	if e.ID, err = res.LastInsertId(); err != nil || e.ID <= keepEvents {
		return q.fail(err)
	}
	_, err = q.exec(ctx, "delete from events where id <= ?", e.ID-keepEvents)
	return q.fail(err)
}

// ListEvents returns events of a VM, or of all when vmID is "", oldest first:
// those after the event with the id after, at most limit of them; with after 0
// the newest limit ones. A limit of 0 or less means all.
func (q Queries) ListEvents(ctx context.Context, vmID string, limit int, after int64) ([]*Event, error) {
	return q.FindEvents(ctx, EventFilter{VMID: vmID, Limit: limit, After: after})
}

// EventFilter selects events. What is zero selects nothing.
type EventFilter struct {
	VMID  string
	Name  string // of a VM, or the beginning of its id
	Since string // a time as it is stored
	After int64  // the id of an event
	Limit int    // with After the oldest so many, else the newest; 0 or less is no limit
}

// FindEvents returns the events that a filter selects, oldest first.
func (q Queries) FindEvents(ctx context.Context, f EventFilter) ([]*Event, error) {
	order := "asc"
	if f.After == 0 {
		order = "desc"
	}
	if f.Limit <= 0 {
		f.Limit = -1
	}
	events := []*Event{}
	err := q.each(ctx, func(r *sql.Rows) error {
		e := new(Event)
		events = append(events, e)
		return r.Scan(&e.ID, &e.At, &e.VMID, &e.VMName, &e.Kind, &e.From, &e.To, &e.Cause, &e.ExitCode)
	}, "select id, at, vm_id, vm_name, kind, from_, to_, cause, exit_code from events where ? in ('', vm_id)"+
		" and (? in ('', vm_name) or substr(vm_id, 1, length(?)) = ?) and at >= ? and id > ? order by id "+order+" limit ?",
		f.VMID, f.Name, f.Name, f.Name, f.Since, f.After, f.Limit)
	if err != nil {
		return nil, q.fail(err)
	}
	if f.After == 0 {
		slices.Reverse(events)
	}
	return events, nil
}
