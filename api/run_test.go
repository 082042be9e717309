package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// echoing serves guests in which every command prints itself and ends with 7.
func echoing(w *world, m *Client) *testGuest {
	g := &testGuest{exec: func(e wire.Exec, stdio io.ReadWriter) int {
		_, _ = fmt.Fprintf(stdio, "%s in %s with %s as %s", strings.Join(e.Argv, " "), e.Dir, strings.Join(e.Env, " "), e.User)
		return 7
	}}
	g.serve(w, m)
	return g
}

func runInput(out io.Writer) RunInput {
	return RunInput{
		VM:   VMCreateInput{Image: "tiny", WaitLimit: time.Minute},
		Exec: ExecInput{Cmd: []string{"make", "test"}, Dir: "/srv", Env: []string{"A=1"}, User: "bob", IO: StreamIO{Stdout: out}},
	}
}

func TestRun(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	echoing(w, m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	var out bytes.Buffer
	in := runInput(&out)
	in.Ready = func(vm *mvm.VMInstanceItem, exec *ExecInput) error {
		if !strings.HasPrefix(vm.Name, "run-") || vm.Status != mvm.StatusRunning {
			t.Errorf("the VM is %s, %s", vm.Name, vm.Status)
		}
		exec.Env = append(exec.Env, "B=2")
		return nil
	}
	code, err := m.VM.Run(t.Context(), in)
	if err != nil || code != 7 || out.String() != "make test in /srv with A=1 B=2 as bob" {
		t.Errorf("%d, %v, %q", code, err, out.String())
	}
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Errorf("something is left:\n%s", d)
	}
	in = runInput(nil)
	in.VM.Name, in.Keep = "mine", true
	if code, err := m.VM.Run(t.Context(), in); err != nil || code != 7 || statusOf(t, m, "mine") != mvm.StatusRunning {
		t.Errorf("kept: %d, %v", code, err)
	}
	in.Keep = false
	if code, err = m.VM.Run(t.Context(), in); code != 1 {
		t.Errorf("the name is taken, and the status %d", code)
	}
	refused(t, err, mvm.ErrExists, "mine")
	if got := statusOf(t, m, "mine"); got != mvm.StatusRunning {
		t.Errorf("the VM whose name it was is %s", got)
	}
}

func TestRunLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		fault string
		stop  bool // the context ends while the command runs
		guest func(*testGuest)
		ready error
		kind  mvm.Kind
		says  string
	}{
		"create fails":         {fault: "error:vm.create:tap:after", kind: mvm.ErrUnavailable, says: "injected"},
		"the guest never came": {guest: func(g *testGuest) { g.ready = func() bool { return false } }, kind: mvm.ErrUnavailable, says: "was not ready within"},
		"ready fails":          {ready: mvm.Errorf(mvm.ErrInvalid, "not so").WithHint("else"), kind: mvm.ErrInvalid, says: "not so"},
		"no such program":      {guest: func(g *testGuest) { g.exec = nil }, kind: mvm.ErrUnsupported, says: "refuses"},
		"cancelled":            {stop: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.open()
			w.stock(m)
			if _, err := m.Network.CreateDefaultNetwork(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := w.state()
			if c.fault != "" {
				m = w.faulty(c.fault)
			}
			g := echoing(w, m)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.stop {
				g.exec = func(_ wire.Exec, stdio io.ReadWriter) int {
					cancel()
					_, _ = io.Copy(io.Discard, stdio)
					return 0
				}
			}
			if c.guest != nil {
				c.guest(g)
			}
			in := runInput(nil)
			in.VM.WaitLimit = 500 * time.Millisecond
			in.Exec.IO.Stdin, _ = io.Pipe()
			if c.ready != nil {
				in.Ready = func(*mvm.VMInstanceItem, *ExecInput) error { return c.ready }
			}
			code, err := m.VM.Run(ctx, in)
			if c.stop && !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			} else if !c.stop {
				refused(t, err, c.kind, c.says)
			}
			if !c.stop && code != 1 {
				t.Errorf("status %d", code)
			}
			if d := cmp.Diff(before, w.state()); d != "" {
				t.Errorf("something is left:\n%s", d)
			}
		})
	}
}

// What a run could not remove, or was killed before, the next command does.
func TestRunIsFinishedByTheNextCommand(t *testing.T) {
	w := newWorld(t)
	first := w.open()
	w.stock(first)
	if _, err := first.Network.CreateDefaultNetwork(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	m := w.faulty("error:vm.run:revert:run:before")
	echoing(w, m)
	code, err := m.VM.Run(t.Context(), runInput(nil))
	refused(t, err, mvm.ErrUnavailable, "injected")
	if code != 7 {
		t.Errorf("status %d", code)
	}
	if len(w.driver.running()) != 1 {
		t.Fatal("the VM is gone: nothing is left to be done")
	}
	if d := cmp.Diff(before, w.state()); d != "" { // opens a client, as the next command does
		t.Errorf("something is left:\n%s", d)
	}
}

func TestRunRefuses(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	before := w.state()
	two := 2
	for says, in := range map[string]RunInput{
		"one VM":            {VM: VMCreateInput{Count: &two}},
		"without the agent": {VM: VMCreateInput{NoAgent: true}},
		"BAD":               {VM: VMCreateInput{Name: "BAD_"}},
		"negative":          {Exec: ExecInput{Timeout: -1}},
		"name is empty":     {Exec: ExecInput{Cmd: []string{""}}},
	} {
		code, err := m.VM.Run(t.Context(), in)
		refused(t, err, mvm.ErrInvalid, says)
		if code != 1 {
			t.Errorf("%s: status %d", says, code)
		}
	}
	_, err := m.VM.Run(t.Context(), RunInput{VM: VMCreateInput{Image: "nix"}})
	refused(t, err, mvm.ErrNotFound, "nix")
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Error(d)
	}
}
