package api

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

// changes are events without what differs from run to run.
func changes(events []VMEvent) []string {
	out := []string{}
	for _, e := range events {
		out = append(out, e.VMName+" "+e.Kind+" "+e.From+" > "+e.To)
	}
	return out
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	for _, name := range []string{"web", "db"} {
		if _, err := m.VM.Create(ctx, VMCreateInput{Name: name, NoAgent: true}); err != nil {
			t.Fatal(err)
		}
	}
	_, err1 := m.VM.Pause(ctx, sel("web"))
	_, err2 := m.VM.Resume(ctx, sel("web"))
	_, err3 := m.VM.Stop(ctx, sel("web"))
	_, err4 := m.VM.Remove(ctx, sel("web"))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	web := []string{
		"web state  > starting", "web state starting > running", "web state running > paused", "web state paused > running",
		"web state running > stopping", "web state stopping > stopped", "web state stopped > stopping", "web removed stopping > removed",
	}
	all := slices.Insert(slices.Clone(web), 2, "db state  > starting", "db state starting > running")
	events, err := m.Event.List(ctx, EventInput{})
	if err != nil {
		t.Fatal(err)
	}
	paused, err := time.Parse(time.RFC3339, events[4].At)
	if err != nil {
		t.Fatal(err)
	}
	one, none := 1, 0
	for _, tc := range []struct {
		name string
		in   EventInput
		want []string
	}{
		{"all", EventInput{}, all},
		{"of one that is gone", EventInput{Identifier: "web"}, web},
		{"of one that is there", EventInput{Identifier: "db"}, all[2:4]},
		{"the last", EventInput{Limit: &one}, web[7:]},
		{"none", EventInput{Limit: &none}, []string{}},
		{"since", EventInput{Since: paused, Identifier: "web"}, web[2:]},
	} {
		got, err := m.Event.List(ctx, tc.in)
		if d := cmp.Diff(tc.want, changes(got)); d != "" || err != nil {
			t.Errorf("%s: %v\n%s", tc.name, err, d)
		}
	}
	events, err = m.Event.List(ctx, EventInput{Identifier: "web"})
	if err != nil || events[5].ExitCode == nil || *events[5].ExitCode != 0 || events[5].Cause != "stopped as asked" || events[0].ExitCode != nil || events[0].At == "" {
		t.Errorf("%+v, %v", events, err)
	}
	_, err = m.Event.List(ctx, EventInput{Identifier: "wep"})
	refused(t, err, mvm.ErrNotFound, "wep")
}

// What happens while events are followed comes, whichever process does it.
func TestFollowEvents(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	one := 1
	next := make(chan VMEvent)
	done := make(chan error)
	go func() {
		for e, err := range m.Event.Follow(ctx, EventInput{Limit: &one}) {
			if err != nil {
				done <- err
				return
			}
			next <- e
		}
	}()
	var got []VMEvent
	got = append(got, <-next) // that of the past
	other := w.open()
	_, err1 := other.VM.Pause(ctx, sel("web"))
	got = append(got, <-next)
	_, err2 := m.VM.Resume(ctx, sel("web"))
	got = append(got, <-next)
	if err := errors.Join(err1, err2); err != nil {
		t.Error(err)
	}
	want := []string{"web state starting > running", "web state running > paused", "web state paused > running"}
	if d := cmp.Diff(want, changes(got)); d != "" {
		t.Error(d)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}
