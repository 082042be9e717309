package vmmtest

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

func testProbe(t *testing.T, f Fixture) {
	p := f.Driver.Probe(within(t))
	if !p.Usable || p.Path == "" || p.Version == "" || p.Accel == "" {
		t.Errorf("Probe = %+v, want what this fixture runs on", p)
	}
	for _, problem := range p.Problems {
		if problem.What == "" || problem.Hint == "" || problem.Fatal {
			t.Errorf("problem %+v: want a sentence and a hint, and nothing fatal in a driver that is usable", problem)
		}
	}
}

func testRender(t *testing.T, f Fixture) {
	l := f.Launch(t)
	r, err := f.Driver.Render(l)
	if err != nil {
		t.Fatalf("Render: %v", err)
	}
	again, err := f.Driver.Render(l)
	if diff := cmp.Diff(r, again); err != nil || diff != "" {
		t.Errorf("Render differs the second time: %v %s", err, diff)
	}
	program := l.Binary
	if l.Jail != nil {
		program = l.Jail.Jailer
	}
	if len(r.Argv) == 0 || r.Argv[0] != program {
		t.Errorf("Argv = %q, want it to begin with %q", r.Argv, program)
	}
	if !slices.ContainsFunc(r.Argv, func(a string) bool { return strings.Contains(a, supervisor.Token(l.ID)) }) {
		t.Errorf("Argv = %q does not have %q", r.Argv, supervisor.Token(l.ID))
	}
	if !filepath.IsAbs(r.APISocket) || r.Guest.Kind == "" {
		t.Errorf("APISocket = %q, Guest = %+v", r.APISocket, r.Guest)
	}
	wantNothingLeft(t, l.ID, l.Dir)
}

func testStart(t *testing.T, f Fixture) {
	l := f.Launch(t)
	m := start(t, f, l)
	wantState(t, m, vmm.StateRunning)
	h := m.Handle()
	want := vmm.Handle{
		Version: h.Version, Driver: f.Driver.Name(), ID: l.ID, Dir: l.Dir, VMM: h.VMM, Supervisor: h.Supervisor,
		APISocket: h.APISocket, Guest: h.Guest, Accel: l.Accel, Jail: h.Jail, Extra: h.Extra,
	}
	if diff := cmp.Diff(want, h); diff != "" || h.Version < 1 {
		t.Errorf("Handle (-want +got):\n%s", diff)
	}
	wantJail(t, l, h)
}

func testAttach(t *testing.T, f Fixture) {
	m := start(t, f, f.Launch(t))
	if err := m.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	other, err := f.Driver.Attach(within(t), copyOf(t, m.Handle()))
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	wantState(t, other, vmm.StateRunning)
	if diff := cmp.Diff(m.Handle(), other.Handle()); diff != "" {
		t.Errorf("the handle changed on the way (-want +got):\n%s", diff)
	}
	if err := other.Kill(within(t), 0); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	wantState(t, m, vmm.StateExited)
	if _, err := f.Driver.Attach(within(t), m.Handle()); !errors.Is(err, vmm.ErrGone) || mvm.HintOf(err) == "" {
		t.Errorf("Attach after the end: %v, want ErrGone with a hint", err)
	}
}

func testAttachRefuses(t *testing.T, f Fixture) {
	h := start(t, f, f.Launch(t)).Handle()
	for name, change := range map[string]func(*vmm.Handle){
		"another driver":  func(h *vmm.Handle) { h.Driver = "none" },
		"a later version": func(h *vmm.Handle) { h.Version = 1 << 20 },
		"a reused pid":    func(h *vmm.Handle) { h.VMM.StartTime++ },
		"another boot":    func(h *vmm.Handle) { h.VMM.BootID = "x" },
	} {
		c := copyOf(t, h)
		change(&c)
		if m, err := f.Driver.Attach(within(t), c); err == nil || m != nil {
			t.Errorf("Attach with %s = %v, %v, want an error", name, m, err)
		}
	}
}

func testConsole(t *testing.T, f Fixture) {
	l := f.Launch(t)
	start(t, f, l)
	console(t, l, f.Hello)
}

func testPause(t *testing.T, f Fixture) {
	m := start(t, f, f.Launch(t))
	p, ok := m.(vmm.Pauser)
	if !ok {
		t.Skip("this driver pauses nothing")
	}
	for _, step := range []struct {
		do   func(context.Context) error
		want vmm.State
	}{
		{p.Resume, vmm.StateRunning}, // one that runs
		{p.Pause, vmm.StatePaused},
		{p.Pause, vmm.StatePaused},
		{p.Resume, vmm.StateRunning},
		{p.Pause, vmm.StatePaused},
	} {
		if err := step.do(within(t)); err != nil {
			t.Errorf("to %s: %v", step.want, err)
		}
		wantState(t, m, step.want)
	}
	if err := m.Kill(within(t), 0); err != nil { // a paused one
		t.Errorf("Kill: %v", err)
	}
	if err := p.Pause(within(t)); err == nil {
		t.Error("Pause after the end succeeds")
	}
}

// A guest need not listen to Shutdown.
func testShutdown(t *testing.T, f Fixture) {
	m := start(t, f, f.Launch(t))
	if err := m.Shutdown(within(t)); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := m.Kill(within(t), 0); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	if err := m.Shutdown(within(t)); err == nil {
		t.Error("Shutdown after the end succeeds")
	}
}

func testKill(t *testing.T, f Fixture) {
	m := start(t, f, f.Launch(t))
	for range 2 {
		if err := m.Kill(within(t), 0); err != nil {
			t.Fatalf("Kill: %v", err)
		}
		wantNothingLeft(t, m.Handle().ID, m.Handle().Dir)
	}
	if exit := wait(t, m); exit.Code != 128+9 || exit.Signal != "SIGKILL" || exit.Reason == "" || exit.At.IsZero() {
		t.Errorf("Wait = %+v, want status 137 by SIGKILL", exit)
	}
	wantState(t, m, vmm.StateExited)
}

func testKillGently(t *testing.T, f Fixture) {
	l := f.Launch(t)
	m := start(t, f, l)
	if err := m.Kill(within(t), limit); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	// The first process of a pid namespace need not get SIGTERM.
	if exit := wait(t, m); exit.Signal == "SIGKILL" && l.Jail == nil {
		t.Errorf("Wait = %+v, want an end by SIGTERM", exit)
	}
}

// One that crashes is found dead, and a Wait that was under way tells how.
func testCrash(t *testing.T, f Fixture) {
	m := start(t, f, f.Launch(t))
	type result struct {
		exit vmm.Exit
		err  error
	}
	done := make(chan result)
	go func() {
		exit, err := m.Wait(within(t))
		done <- result{exit, err}
	}()
	f.Crash(t, m.Handle())
	got := <-done
	if got.err != nil || got.exit.Code != 128+9 || got.exit.Signal != "SIGKILL" {
		t.Errorf("Wait = %+v, %v, want status 137 by SIGKILL", got.exit, got.err)
	}
	wantState(t, m, vmm.StateExited)
	if _, err := f.Driver.Attach(within(t), m.Handle()); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("Attach: %v, want ErrGone", err)
	}
}

func testPowerOff(t *testing.T, f Fixture) {
	l := f.Launch(t)
	f.PowerOff(&l)
	m := start(t, f, l)
	if exit := wait(t, m); exit.Code != 0 || exit.Signal != "" || exit.Reason == "" {
		t.Errorf("Wait = %+v, want status 0 and a reason", exit)
	}
	console(t, l, f.Hello) // nothing of it is lost by the end
}

func testWaitCancelled(t *testing.T, f Fixture) {
	m := start(t, f, f.Launch(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v, want context.Canceled", err)
	}
	wantState(t, m, vmm.StateRunning)
}

func testDialGuest(t *testing.T, f Fixture) {
	m := start(t, f, f.Launch(t))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	conn, err := m.DialGuest(ctx, 9)
	if !errors.Is(err, mvm.ErrUnavailable) || conn != nil || mvm.HintOf(err) == "" {
		t.Errorf("DialGuest = %v, %v, want ErrUnavailable with a hint, as nothing listens", conn, err)
	}
	l := f.Launch(t)
	l.Agent = false
	if _, err := start(t, f, l).DialGuest(within(t), 9); !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" {
		t.Errorf("DialGuest without a channel: %v, want ErrUnsupported with a hint", err)
	}
}
