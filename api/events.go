package api

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// EventOperation tells what happened to VMs: every phase that they came to, when,
// why, and with which exit status, also of VMs that are gone. The newest 100,000
// events are kept.
type EventOperation struct{ core *core }

// EventInput selects events.
type EventInput struct {
	Identifier string    // a VM's selector, or the name or id prefix of one that was removed; "" means all VMs
	Since      time.Time // those at that time or later; zero means all
	Limit      *int      // the newest so many; nil means all
}

// VMEvent is one event in the history of a VM.
type VMEvent struct {
	ID       int64  `json:"id"` // grows with time
	At       string `json:"at"`
	VMID     string `json:"vm_id"`
	VMName   string `json:"vm_name"`
	Kind     string `json:"kind"` // state, action, undone, restart, removed
	From     string `json:"from"` // the phase before; "" when there was none
	To       string `json:"to"`   // the phase after, or "removed"
	Cause    string `json:"cause"`
	ExitCode *int   `json:"exit_code"` // of the VMM, where it has ended and that is known
}

func vmEvent(e *store.Event) VMEvent {
	return VMEvent{ID: e.ID, At: e.At, VMID: e.VMID, VMName: e.VMName, Kind: e.Kind, From: e.From, To: e.To, Cause: e.Cause, ExitCode: e.ExitCode}
}

// followPoll is the pause between looks whether the database has changed.
const followPoll = 250 * time.Millisecond

// List returns events, oldest first.
func (o *EventOperation) List(ctx context.Context, in EventInput) ([]VMEvent, error) {
	events := []VMEvent{}
	st, f, err := o.find(ctx, in)
	if err == nil {
		_, err = emit(ctx, st, f, func(e VMEvent) bool {
			events = append(events, e)
			return true
		})
	}
	return events, err
}

// Follow yields the events that List returns, and then those that come, until ctx
// ends. An error is yielded last.
func (o *EventOperation) Follow(ctx context.Context, in EventInput) iter.Seq2[VMEvent, error] {
	return func(yield func(VMEvent, error) bool) {
		err := o.follow(ctx, in, func(e VMEvent) bool { return yield(e, nil) })
		if err != nil && !errors.Is(err, errStopped) {
			yield(VMEvent{}, err)
		}
	}
}

func (o *EventOperation) follow(ctx context.Context, in EventInput, yield func(VMEvent) bool) error {
	st, f, err := o.find(ctx, in)
	if err != nil {
		return err
	}
	changes, err := st.Watch(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = changes.Close() }()
	newest, err := st.ListEvents(ctx, "", 1, 0)
	if err != nil {
		return err
	}
	last, err := emit(ctx, st, f, yield)
	if err != nil {
		return err
	}
	for _, e := range newest { // those before it were not asked for
		last = max(last, e.ID)
	}
	f.Limit, f.Since = 0, ""
	tick := time.NewTicker(followPoll)
	defer tick.Stop()
	for {
		// An id of 0 would mean the newest instead of those after it.
		if f.After = last; last == 0 {
			f.After = -1
		}
		id, err := emit(ctx, st, f, yield)
		if err != nil {
			return err
		}
		last = max(last, id)
		for changed := false; !changed; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
			if changed, err = changes.Changed(ctx); err != nil {
				return err
			}
		}
	}
}

// emit hands the selected events on and returns the id of the last one.
func emit(ctx context.Context, st *store.Store, f store.EventFilter, yield func(VMEvent) bool) (last int64, err error) {
	if f.Limit < 0 {
		return 0, nil
	}
	events, err := st.FindEvents(ctx, f)
	for _, e := range events {
		last = e.ID
		if !yield(vmEvent(e)) {
			return last, errStopped
		}
	}
	return last, err
}

// find turns the input into a filter. A Limit of 0 becomes one that selects nothing.
func (o *EventOperation) find(ctx context.Context, in EventInput) (*store.Store, store.EventFilter, error) {
	var f store.EventFilter
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, f, err
	}
	if in.Limit != nil {
		if f.Limit = *in.Limit; f.Limit <= 0 {
			f.Limit = -1
		}
	}
	if !in.Since.IsZero() {
		f.Since = stamp(in.Since)
	}
	if in.Identifier == "" {
		return st, f, nil
	}
	vm, err := o.core.findVM(ctx, st, in.Identifier)
	if err == nil {
		f.VMID = vm.ID
		return st, f, nil
	}
	if !errors.Is(err, mvm.ErrNotFound) {
		return nil, f, err
	}
	past, perr := st.FindEvents(ctx, store.EventFilter{Name: in.Identifier, Limit: 1})
	if perr != nil || len(past) == 0 {
		return nil, f, errors.Join(err, perr)
	}
	f.Name = in.Identifier
	return st, f, nil
}
