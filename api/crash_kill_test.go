package api

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/supervisor"
)

// own returns the processes of a VM: its VMM and its supervisor.
func (w *hosted) own(id string) (vmm, supervisors []proc.Identity) {
	w.t.Helper()
	found, err := proc.FindByArg(supervisor.Token(id))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range found {
		if slices.Contains(cmdline(p.PID), supervisor.Command) {
			supervisors = append(supervisors, p)
		} else {
			vmm = append(vmm, p)
		}
	}
	return vmm, supervisors
}

// inOrder fails the test where what is written down of a VM is not what is there of
// it.
func (w *hosted) inOrder(what, name string) {
	w.t.Helper()
	m := w.open()
	ctx := w.t.Context()
	v, err := m.VM.Get(ctx, sel(name))
	if errors.Is(err, mvm.ErrNotFound) {
		for _, l := range w.settled() {
			// The other VM runs on, and with it the DNS server of their network.
			others := strings.Contains(l, "other") || l == "DNS of default runs: true" || name != "web" && (strings.Contains(l, "web") || strings.Contains(l, "<kept>"))
			if !others && !strings.HasPrefix(l, "link ") && !strings.HasPrefix(l, "table ") {
				w.t.Errorf("%s: the VM is gone, and left: %s", what, l)
			}
		}
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	lines := w.settled()
	want := 0
	switch v.Status {
	case mvm.StatusRunning, mvm.StatusPaused:
		want = 1
	case mvm.StatusStopped, mvm.StatusCrashed:
	default:
		w.t.Errorf("%s: it is %s: %s", what, v.Status, v.StatusReason)
	}
	var vmms, supervisors []proc.Identity
	eventually(w.t, what+": its processes end", func() bool { // a supervisor outlives its VMM by a moment
		vmms, supervisors = w.own(v.ID)
		return len(vmms) <= want && len(supervisors) <= want
	})
	taps, err := w.net.Taps(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	tap := 0
	for _, t := range taps {
		if t.VMID == v.ID {
			tap++
		}
	}
	leases := 0
	for _, l := range lines {
		if strings.HasPrefix(l, "lease ") && strings.HasSuffix(l, " <"+name+">") {
			leases++
		}
		if strings.HasPrefix(l, "operation ") {
			w.t.Errorf("%s: left: %s", what, l)
		}
	}
	if len(vmms) != want || len(supervisors) != want || tap != want || leases != 1 {
		w.t.Errorf("%s: it is %s, with %d VMMs, %d supervisors, %d taps, %d leases", what, v.Status, len(vmms), len(supervisors), tap, leases)
	}
	if state := w.observed(m, v); want == 1 && state != string(v.Status) {
		w.t.Errorf("%s: it is %s, but its VMM says %s", what, v.Status, state)
	}
}

// Whatever dies while a command stands between any two steps, the VMM, its
// supervisor or both, what is written down afterwards is what is there, and the VM
// can be removed.
func TestProcessesDieAtEveryStep(t *testing.T) {
	for _, p := range plans {
		t.Run(p.deed, func(t *testing.T) {
			t.Parallel()
			w := newHosted(t)
			w.must("create other")
			begin := func() {
				_ = w.run("", "rm all") // there may be nothing of it
				for _, deed := range p.first {
					w.must(deed)
				}
			}
			begin()
			points := w.points("", p.deed, p.kinds)
			kills := 0
			for _, point := range points {
				for _, victims := range []string{"VMM", "supervisor", "both"} {
					if testing.Short() && (victims == "both" || strings.HasSuffix(point, ":before")) {
						continue
					}
					begin()
					if w.killAt(point, p, victims) {
						kills++
						w.inOrder(victims+" killed at "+point, p.about())
						if t.Failed() {
							return
						}
					}
				}
			}
			t.Logf("%d times something was killed", kills)
			if kills < 2 {
				t.Errorf("only %d times something was there to be killed", kills)
			}
		})
	}
}

// killAt does a deed and kills what runs for its VM while it stands at a point. It reports
// whether there was something to be killed.
func (w *hosted) killAt(point string, p deedPlan, victims string) bool {
	w.t.Helper()
	cmd := w.command("stop:"+point, p.deed)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, "the command stands at "+point, func() bool { return stopped(cmd.Process.Pid) })
	var ids []proc.Identity
	if v := w.find(p.about()); v != nil {
		vmms, supervisors := w.own(v.ID)
		if victims != "supervisor" {
			ids = append(ids, vmms...)
		}
		if victims != "VMM" {
			ids = append(ids, supervisors...)
		}
	}
	for _, id := range ids {
		_ = proc.Signal(id, unix.SIGKILL) // of two the first may have ended the second
	}
	for _, id := range ids {
		if err := proc.WaitExit(w.t.Context(), id); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
		w.t.Fatal(err)
	}
	_ = cmd.Wait() // whether it succeeds depends on what died when
	return len(ids) > 0
}
