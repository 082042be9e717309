package mvm_test

import (
	"slices"
	"testing"

	"github.com/mvmctl/mvm"
)

// want says for each verb which phases allow it; every other pair is refused.
var want = map[mvm.Verb][]mvm.VMStatus{
	mvm.VerbStart:    {mvm.StatusStopped, mvm.StatusCrashed, mvm.StatusError},
	mvm.VerbStop:     {mvm.StatusRunning, mvm.StatusPaused, mvm.StatusError},
	mvm.VerbPause:    {mvm.StatusRunning},
	mvm.VerbResume:   {mvm.StatusPaused},
	mvm.VerbReboot:   {mvm.StatusRunning, mvm.StatusPaused},
	mvm.VerbSnapshot: {mvm.StatusRunning, mvm.StatusPaused},
	mvm.VerbLoad:     {mvm.StatusStopped, mvm.StatusCrashed},
	mvm.VerbUpdate:   {mvm.StatusRunning, mvm.StatusPaused, mvm.StatusStopped, mvm.StatusCrashed},
	mvm.VerbRemove:   {mvm.StatusRunning, mvm.StatusPaused, mvm.StatusStopped, mvm.StatusCrashed, mvm.StatusError},
}

func TestTransitionTable(t *testing.T) {
	if got := len(mvm.Transitions()); got != len(want) {
		t.Errorf("the table has %d verbs, this test %d", got, len(want))
	}
	for verb, from := range want {
		row := mvm.TransitionOf(verb)
		if row.Verb != verb {
			t.Errorf("%s has no row", verb)
		}
		for _, s := range mvm.Statuses() {
			if got, want := row.Allows(s), slices.Contains(from, s); got != want {
				t.Errorf("%s from %s: allowed %v, want %v", verb, s, got, want)
			}
		}
	}
}

// Whoever looks at the table can rely on this, whatever stands in it.
func TestTransitionsHangTogether(t *testing.T) {
	for _, row := range mvm.Transitions() {
		if len(row.From) == 0 {
			t.Errorf("%s can never start", row.Verb)
		}
		for _, s := range row.From {
			if s == mvm.StatusStarting || s == mvm.StatusStopping {
				t.Errorf("%s starts while another verb works (%s)", row.Verb, s)
			}
		}
		if row.During != "" && row.During != mvm.StatusStarting && row.During != mvm.StatusStopping {
			t.Errorf("%s shows %s meanwhile, which is no transition", row.Verb, row.During)
		}
		for _, s := range []mvm.VMStatus{row.Success, row.Failure} {
			if s != "" && !slices.Contains(mvm.Statuses(), s) || s == mvm.StatusStarting || s == mvm.StatusStopping {
				t.Errorf("%s ends in %q", row.Verb, s)
			}
		}
	}
	for _, s := range []mvm.VMStatus{mvm.StatusRunning, mvm.StatusPaused, mvm.StatusStopped, mvm.StatusCrashed, mvm.StatusError} {
		if !mvm.TransitionOf(mvm.VerbRemove).Allows(s) {
			t.Errorf("a VM in phase %s cannot be removed", s)
		}
	}
}

func TestUnknownVerbIsNeverAllowed(t *testing.T) {
	for _, s := range mvm.Statuses() {
		if mvm.TransitionOf("fly").Allows(s) {
			t.Errorf("fly is allowed from %s", s)
		}
	}
}

func TestTheTableCannotBeChangedFromOutside(t *testing.T) {
	mvm.Transitions()[0].During = "changed"
	mvm.Settings()[0].Default = "changed"
	if mvm.Transitions()[0].During == "changed" || mvm.Settings()[0].Default == "changed" {
		t.Error("a copy would be handed out")
	}
}

func TestActive(t *testing.T) {
	active := []mvm.VMStatus{mvm.StatusStarting, mvm.StatusRunning, mvm.StatusPaused, mvm.StatusStopping}
	if len(mvm.Statuses()) != 7 {
		t.Errorf("there are %d phases; the reference has 7", len(mvm.Statuses()))
	}
	for _, s := range mvm.Statuses() {
		if s.Active() != slices.Contains(active, s) {
			t.Errorf("%s: active is %v", s, s.Active())
		}
	}
}
