package vmmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// A Start that is cancelled, wherever it is at the time, leaves nothing.
func testStartCancelled(t *testing.T, f Fixture) {
	for _, after := range []time.Duration{0, 1, 3, 8, 15, 25, 40, 60} {
		l := f.Launch(t)
		ctx, cancel := context.WithCancel(t.Context())
		if after == 0 {
			cancel()
		}
		timer := time.AfterFunc(after*time.Millisecond, cancel)
		m, err := f.Driver.Start(ctx, l)
		timer.Stop()
		cancel()
		if err == nil { // it was too late, which is fine, but not with a dead context
			if after == 0 {
				t.Error("Start with a cancelled context succeeds")
			}
			endWithTest(t, m)
			continue
		}
		if !errors.Is(err, context.Canceled) || m != nil {
			t.Errorf("Start cancelled after %d ms = %v, %v, want context.Canceled", after, m, err)
		}
		wantNothingLeft(t, l.ID, l.Dir)
	}
}

// What cannot start says why, and leaves nothing.
func testStartFails(t *testing.T, f Fixture) {
	script := func(t *testing.T, text string) string {
		path := filepath.Join(t.TempDir(), "vmm")
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil { //nolint:gosec // it is to be executed
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name   string
		change func(*testing.T, *vmm.Launch)
		want   string // in the error

		executes bool
	}{
		{"missing binary", func(_ *testing.T, l *vmm.Launch) { l.Binary = filepath.Join(l.Dir, "no-such-vmm") }, "no-such-vmm", false},
		{"no program", func(t *testing.T, l *vmm.Launch) { l.Binary = script(t, "hello") }, "exec format", true},
		{"a failing program", func(t *testing.T, l *vmm.Launch) {
			l.Binary = script(t, "#!/bin/sh\necho bad omen >&2\nexit 3\n")
		}, "bad omen", true},
		{"missing kernel", func(_ *testing.T, l *vmm.Launch) { l.Kernel = filepath.Join(l.Dir, "no-such-kernel") }, "no-such-kernel", false},
		{"missing disk", func(_ *testing.T, l *vmm.Launch) {
			l.Disks = []vmm.Disk{{ID: "rootfs", Path: filepath.Join(l.Dir, "no-such-disk"), Format: "raw"}}
		}, "no-such-disk", false},
	} {
		if f.InMemory && c.executes {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			l := f.Launch(t)
			if c.name == "a failing program" && l.Jail != nil {
				t.Skip("there is no shell in a jail")
			}
			c.change(t, &l)
			want := c.want
			if c.name == "no program" && l.Jail != nil {
				want = "exec" // the jailer words it
			}
			m, err := f.Driver.Start(within(t), l)
			if err == nil {
				endWithTest(t, m)
				t.Fatal("Start succeeds")
			}
			if !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" || !strings.Contains(strings.ToLower(err.Error()), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Start: %v (kind %v, hint %q), want one line with %q, ErrUnavailable and a hint", err, mvm.KindOf(err), mvm.HintOf(err), want)
			}
			wantNothingLeft(t, l.ID, l.Dir)
		})
	}
}

// A VM starts again where it ran before, however it ended.
func testStartAgain(t *testing.T, f Fixture) {
	l := f.Launch(t)
	first := start(t, f, l)
	f.Crash(t, first.Handle())
	wait(t, first)
	if err := first.Kill(within(t), 0); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	second := start(t, f, l)
	wantState(t, second, vmm.StateRunning)
	wantState(t, first, vmm.StateExited)
	console(t, l, f.Hello)
}

func testTwo(t *testing.T, f Fixture) {
	la, lb := f.Launch(t), f.Launch(t)
	a, b := start(t, f, la), start(t, f, lb)
	if p, ok := a.(vmm.Pauser); ok {
		if err := p.Pause(within(t)); err != nil {
			t.Errorf("Pause: %v", err)
		}
		wantState(t, b, vmm.StateRunning)
	}
	if err := a.Kill(within(t), 0); err != nil {
		t.Errorf("Kill: %v", err)
	}
	wantState(t, a, vmm.StateExited)
	wantState(t, b, vmm.StateRunning)
	console(t, lb, f.Hello)
}

// Methods may be called at once.
func testAtOnce(t *testing.T, f Fixture) {
	m := start(t, f, f.Launch(t))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := m.State(within(t)); got != vmm.StateRunning || err != nil {
				t.Errorf("State = %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	for range 3 {
		wg.Go(func() {
			if err := m.Kill(within(t), 0); err != nil {
				t.Errorf("Kill: %v", err)
			}
		})
		wg.Go(func() {
			if exit, err := m.Wait(within(t)); err != nil || exit.Code != 128+9 {
				t.Errorf("Wait = %+v, %v", exit, err)
			}
		})
	}
	wg.Wait()
}
