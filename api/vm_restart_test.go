package api

import (
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
)

func TestPlanRestart(t *testing.T) {
	begun := time.Now().Add(-time.Hour)
	vm := func(policy mvm.RestartPolicy, lastMS int) *mvm.VMInstanceItem {
		at := begun.UnixMilli()
		return &mvm.VMInstanceItem{ProcessStartTime: &at, Options: mvm.VMOptions{Restart: policy, RestartDelayMS: lastMS}}
	}
	crash, off := death{to: mvm.StatusCrashed, at: begun.Add(time.Second)}, death{to: mvm.StatusStopped, at: begun.Add(time.Second)}
	late, reboot := death{to: mvm.StatusCrashed, at: begun.Add(10 * time.Second)}, death{to: mvm.StatusCrashed, at: begun, rebooted: true}
	for _, tc := range []struct {
		name  string
		vm    *mvm.VMInstanceItem
		death death
		delay time.Duration
		again bool
	}{
		{"no policy", vm("", 0), crash, 0, false},
		{"no", vm(mvm.RestartNo, 0), crash, 0, false},
		{"on-failure, crash", vm(mvm.RestartOnFailure, 0), crash, 100 * time.Millisecond, true},
		{"on-failure, power off", vm(mvm.RestartOnFailure, 0), off, 0, false},
		{"on-failure, reboot", vm(mvm.RestartOnFailure, 0), reboot, 0, false},
		{"always, power off", vm(mvm.RestartAlways, 0), off, 100 * time.Millisecond, true},
		{"always, reboot", vm(mvm.RestartAlways, 60_000), reboot, 0, true},
		{"again", vm(mvm.RestartAlways, 100), crash, 200 * time.Millisecond, true},
		{"and again", vm(mvm.RestartAlways, 25_600), crash, 51_200 * time.Millisecond, true},
		{"at most a minute", vm(mvm.RestartAlways, 51_200), crash, time.Minute, true},
		{"a minute and no more", vm(mvm.RestartAlways, 60_000), crash, time.Minute, true},
		{"anew after ten seconds", vm(mvm.RestartAlways, 60_000), late, 100 * time.Millisecond, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if delay, again := planRestart(tc.vm, tc.death); delay != tc.delay || again != tc.again {
				t.Errorf("%s, %v; want %s, %v", delay, again, tc.delay, tc.again)
			}
		})
	}
}

// crashed waits until the VM "web" runs again after a crash, and returns its row.
func (w *hosted) restarted(before proc.Identity) *mvm.VMInstanceItem {
	w.t.Helper()
	var v *mvm.VMInstanceItem
	eventually(w.t, "it runs again", func() bool {
		v = w.row()
		h, err := handleOf(v)
		return v.Status == mvm.StatusRunning && err == nil && h.VMM != before
	})
	return v
}

func TestRestartPolicy(t *testing.T) {
	t.Run("a crash, and another", func(t *testing.T) {
		t.Parallel()
		w := newHosted(t)
		w.must("create, on failure")
		for n := 1; n <= 2; n++ {
			h := w.handle()
			kill(t, h.VMM)
			v := w.restarted(h.VMM)
			if v.Options.RestartCount != n || v.Options.RestartAt != "" {
				t.Errorf("after %d: %+v", n, v.Options)
			}
		}
		if v := w.row(); v.Options.RestartDelayMS != 200 {
			t.Errorf("the delay is %d ms", v.Options.RestartDelayMS)
		}
		w.must("stop")
		w.must("start")
		if v := w.row(); v.Options.RestartCount != 0 || v.Options.RestartDelayMS != 0 {
			t.Errorf("after a start by hand: %+v", v.Options)
		}
		w.must("rm")
		if left := w.settled(); strings.Contains(strings.Join(left, "\n"), "process") {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("what ended as asked stays so", func(t *testing.T) {
		t.Parallel()
		w := newHosted(t)
		w.must("create, on failure")
		tell(t, w.handle(), "poweroff")
		eventually(t, "it has ended", func() bool { return w.row().Status == mvm.StatusStopped })
		w.must("rm")
		w.must("create, always")
		w.must("stop")
		w.settled()
		if v := w.row(); v.Status != mvm.StatusStopped || waitsForRestart(v) {
			t.Errorf("it is %s, %+v", v.Status, v.Options)
		}
	})
	t.Run("always", func(t *testing.T) {
		t.Parallel()
		w := newHosted(t)
		w.must("create, always")
		h := w.handle()
		tell(t, h, "poweroff")
		w.restarted(h.VMM)
	})
}

// A VM that waits for its restart: what users can do to it, and what becomes of it
// when the process that is to start it is killed.
func TestWaitingForRestart(t *testing.T) {
	waiting := func(t *testing.T) *hosted {
		t.Parallel()
		w := newHosted(t)
		w.must("create, on failure")
		m := w.open()
		v, err := m.VM.Get(t.Context(), sel("web"))
		if err == nil {
			v.Options.RestartDelayMS = 60_000 // as if it had crashed many times
			err = m.core.st.UpdateVM(t.Context(), v)
		}
		if err != nil {
			t.Fatal(err)
		}
		kill(t, w.handle().VMM)
		eventually(t, "it waits", func() bool { return waitsForRestart(w.row()) })
		return w
	}
	restarters := func(w *hosted) (all []process) {
		for _, p := range w.processes() {
			if strings.Contains(p.line, restartCommand) {
				all = append(all, p)
			}
		}
		return all
	}
	t.Run("stop", func(t *testing.T) {
		w := waiting(t)
		w.must("stop")
		w.settled() // the process that was to start it has ended too
		if v := w.row(); v.Status != mvm.StatusStopped || waitsForRestart(v) {
			t.Errorf("it is %s, %+v", v.Status, v.Options)
		}
		if err := w.run("", "stop"); err == nil {
			t.Error("it can be stopped twice")
		}
	})
	t.Run("start", func(t *testing.T) {
		w := waiting(t)
		w.must("start")
		w.settled()
		if v := w.row(); v.Status != mvm.StatusRunning || v.Options.RestartAt != "" || v.Options.RestartCount != 0 {
			t.Errorf("it is %s, %+v", v.Status, v.Options)
		}
	})
	t.Run("rm", func(t *testing.T) {
		w := waiting(t)
		w.must("rm")
		if left := w.settled(); strings.Contains(strings.Join(left, "\n"), "web") {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("prune", func(t *testing.T) {
		w := waiting(t)
		if res, err := w.open().VM.Prune(t.Context(), PruneInput{}); err != nil || len(res.Removed) > 0 {
			t.Errorf("pruned %+v, %v", res, err)
		}
	})
	t.Run("killed, and looked at", func(t *testing.T) {
		w := waiting(t)
		eventually(t, "the process that is to start it", func() bool { return len(restarters(w)) == 1 })
		was := restarters(w)[0]
		kill(t, was.id)
		if err := proc.WaitExit(t.Context(), was.id); err != nil {
			t.Fatal(err)
		}
		w.due()
		if _, err := w.open().VM.ListAll(t.Context()); err != nil { // any command will do
			t.Fatal(err)
		}
		w.restarted(proc.Identity{})
	})
	t.Run("a start that fails", func(t *testing.T) {
		w := waiting(t)
		if err := removeFile(w.open().core.paths.abs("kernels/tiny/vmlinux")); err != nil {
			t.Fatal(err)
		}
		w.due()
		eventually(t, "it is given up", func() bool { return !waitsForRestart(w.row()) })
		if v := w.row(); v.Status != mvm.StatusCrashed || !strings.Contains(v.StatusReason, "restart failed") || !strings.Contains(v.StatusReason, "vmlinux") {
			t.Errorf("it is %s, %q", v.Status, v.StatusReason)
		}
	})
}

// due makes the time come at which the VM "web" is restarted.
func (w *hosted) due() {
	w.t.Helper()
	m := w.open()
	st, err := m.core.open(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	v := w.row()
	v.Options.RestartAt = stamp(time.Now().Add(-time.Second))
	if err := st.UpdateVM(w.t.Context(), v); err != nil {
		w.t.Fatal(err)
	}
}

// After a reboot, autostart starts the VMs that ran and that are to run always, and
// no others.
func TestAutostart(t *testing.T) {
	t.Parallel()
	w := newHosted(t)
	m := w.open()
	for name, policy := range map[string]mvm.RestartPolicy{"web": mvm.RestartAlways, "off": mvm.RestartAlways, "failing": mvm.RestartOnFailure, "plain": ""} {
		if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: name, NoAgent: true, RestartPolicy: policy}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.VM.Stop(t.Context(), sel("off")); err != nil {
		t.Fatal(err)
	}
	w.reboot()
	for _, want := range []int{1, 0} { // the second time there is nothing to do
		batch, err := w.open().VM.Autostart(t.Context())
		if err != nil || len(batch.Items()) != want {
			t.Fatalf("started %+v, %v", batch, err)
		}
	}
	for name, want := range map[string]mvm.VMStatus{"web": mvm.StatusRunning, "off": mvm.StatusStopped, "failing": mvm.StatusCrashed, "plain": mvm.StatusCrashed} {
		if got := w.find(name).Status; got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}
