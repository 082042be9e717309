package api

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// stops notes how VMs are ended: how long their agents may take to answer, and the
// grace between SIGTERM and SIGKILL.
type stops struct {
	mu    sync.Mutex
	asked []time.Duration
	grace []time.Duration
}

// watch has VMs of the world whose guests hear nothing be stopped under the eyes of s.
func (s *stops) watch(w *world, m *Client) {
	w.driver.Ignore = true
	w.driver.Guest = func(ctx context.Context, _ vmm.Handle, _ uint32) (net.Conn, error) {
		if end, ok := ctx.Deadline(); ok {
			s.mu.Lock()
			s.asked = append(s.asked, time.Until(end))
			s.mu.Unlock()
		}
		return nil, mvm.Errorf(mvm.ErrUnavailable, "it hears nothing").WithHint("wait")
	}
	m.core.endProcesses = func(ctx context.Context, id string, grace time.Duration) error {
		s.mu.Lock()
		s.grace = append(s.grace, grace)
		s.mu.Unlock()
		return supervisor.End(ctx, id, 0)
	}
}

// The guest, SIGTERM and SIGKILL each have the time that the settings give them, or
// the command where that says otherwise.
func TestStopLimits(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	w.set(m, "settings.vm", "stop_timeout_sec", "1")
	w.set(m, "settings.vm", "term_timeout_sec", "7")
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		in    VMInput
		most  time.Duration // that a guest may take to answer; 0: it is not asked
		grace time.Duration
	}{
		{"by settings", VMInput{}, time.Second, 7 * time.Second},
		{"by the command", VMInput{Timeout: 100 * time.Millisecond}, 100 * time.Millisecond, 7 * time.Second},
		{"forced", VMInput{Force: true}, 0, 0},
	} {
		s := &stops{}
		s.watch(w, m)
		tc.in.Identifiers = []string{"web"}
		if _, err := m.VM.Stop(t.Context(), tc.in); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if (len(s.asked) > 0) != (tc.most > 0) || len(s.asked) > 0 && slices.Max(s.asked) > tc.most {
			t.Errorf("%s: the guest was given %v to answer, not %v", tc.name, s.asked, tc.most)
		}
		if diff := cmp.Diff([]time.Duration{tc.grace}, s.grace); diff != "" {
			t.Errorf("%s: between SIGTERM and SIGKILL:\n%s", tc.name, diff)
		}
		if got := statusOf(t, m, "web"); got != mvm.StatusStopped {
			t.Errorf("%s: it is %s", tc.name, got)
		}
		if _, err := m.VM.Start(t.Context(), sel("web")); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that does not end on SIGKILL is given up after a time; the VM keeps its
// phase, and can be stopped once the process can end.
func TestStopWhatDoesNotEnd(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	w.set(m, "settings.vm", "kill_timeout_sec", "1")
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	m.core.endProcesses = func(ctx context.Context, _ string, _ time.Duration) error {
		<-ctx.Done()
		return ctx.Err()
	}
	stop := VMInput{Identifiers: []string{"web"}, Force: true}
	_, err := m.VM.Stop(t.Context(), stop)
	refused(t, err, mvm.ErrUnavailable, "has not ended 1s after SIGKILL")
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("the world changed:\n%s", diff)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	m.core.endProcesses = func(ctx context.Context, _ string, _ time.Duration) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	if _, err := m.VM.Stop(cancelled, stop); err == nil || strings.Contains(err.Error(), "SIGKILL") {
		t.Errorf("cancelled, it says %v", err)
	}
	m.core.endProcesses = supervisor.End
	if _, err := m.VM.Stop(t.Context(), stop); err != nil {
		t.Error(err)
	}
}

// A guest that is to be removed is asked to shut down, paused or not: its volumes
// outlive it. With force nobody is asked.
func TestRemoveAsksTheGuest(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	for _, tc := range []struct {
		paused, force bool
	}{{false, false}, {true, false}, {false, true}, {true, true}} {
		res, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true})
		if err != nil {
			t.Fatal(err)
		}
		if tc.paused {
			if _, err := m.VM.Pause(ctx, sel("web")); err != nil {
				t.Fatal(err)
			}
		}
		mc, err := w.driver.Attach(ctx, mustHandle(t, m, "web"))
		if err != nil {
			t.Fatal(err)
		}
		in := sel("web")
		in.Force = tc.force
		_, err1 := m.VM.Remove(ctx, in)
		exit, err2 := mc.Wait(ctx)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if poweredOff := exit.Code == 0; poweredOff == tc.force {
			t.Errorf("%s, paused %v, forced %v: it ended with %+v", res.VMs[0].Name, tc.paused, tc.force, exit)
		}
	}
	if diff := cmp.Diff([]string{}, w.state()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
}

func mustHandle(t *testing.T, m *Client, name string) vmm.Handle {
	t.Helper()
	vm, err := m.VM.Get(t.Context(), sel(name))
	if err != nil {
		t.Fatal(err)
	}
	h, err := handleOf(vm)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// What a creation that fails has made stays where that was asked for, and is removed
// as any VM is.
func TestSkipCleanup(t *testing.T) {
	w := newWorld(t)
	w.stock(w.open())
	m := w.faulty("error:" + opCreate + ":vmm:before")
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", SkipCleanup: true}); err == nil {
		t.Fatal("it did not fail")
	}
	m = w.open()
	v, err := m.VM.Get(t.Context(), sel("web"))
	if err != nil || v.Status != mvm.StatusError || v.StatusReason == "" || !exists(v.RootfsPath) {
		t.Errorf("what is left is %+v, %v", v, err)
	}
	if _, err := m.VM.Remove(t.Context(), sel("web")); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{}, w.state()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
}

// A batch that is all or none is none when it is interrupted after its first VM was
// made.
func TestAtomicBatchInterrupted(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "other", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	n := parallelCreates + 4
	var begun atomic.Int32
	res, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true, Count: &n, Atomic: true}, OnProgress(func(e mvm.ProgressEvent) {
		if strings.HasPrefix(e.Message, "creating ") && begun.Add(1) == parallelCreates+1 { // so one is made
			interrupt()
		}
	}))
	if err == nil || len(res.VMs) != 0 {
		t.Errorf("made %d, %v", len(res.VMs), err)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
}
