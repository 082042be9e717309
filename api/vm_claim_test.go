package api

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

// What a verb was made ready for is the phase that the VM was read in. One that came
// to another phase since, from which the verb could start as well, is left as it is.
func TestClaimOfAnotherPhase(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	c := m.VM.core
	for _, verb := range []mvm.Verb{mvm.VerbStop, mvm.VerbUpdate} {
		read, err := c.findVM(ctx, c.st, "web") // and then another command is quicker
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.VM.Pause(ctx, sel("web")); err != nil {
			t.Fatal(err)
		}
		before := w.state()
		err = c.withClaim(ctx, read, verb, mvm.StatusRunning, "as asked", func(context.Context) error {
			t.Errorf("%s works on a VM that is paused by now", verb)
			return nil
		})
		refused(t, err, mvm.ErrConflict, "it is paused by now")
		if d := cmp.Diff(before, w.state()); d != "" {
			t.Errorf("%s changed (-before +after):\n%s", verb, d)
		}
		if _, err := m.VM.Resume(ctx, sel("web")); err != nil {
			t.Fatal(err)
		}
	}
}
