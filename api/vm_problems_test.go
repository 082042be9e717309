package api

import (
	"bytes"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
)

// lacks inspects the VM "web" and returns what it lacks.
func (w *hosted) lacks(m *Client) []string {
	w.t.Helper()
	v, err := m.VM.Inspect(w.t.Context(), sel("web"))
	if err != nil {
		w.t.Fatal(err)
	}
	out := []string{}
	for _, p := range v.Problems {
		if p.Hint == "" {
			w.t.Errorf("no hint for %q", p.What)
		}
		out = append(out, p.What)
	}
	return out
}

// A VM whose supervisor was killed runs on, and gets a new one by the next command
// of root's; how it ends is then known again.
func TestLostSupervisor(t *testing.T) {
	t.Parallel()
	w := newHosted(t)
	w.must("create")
	h := w.handle()
	kill(t, h.Supervisor)
	if err := proc.WaitExit(t.Context(), h.Supervisor); err != nil {
		t.Fatal(err)
	}
	user := w.open()
	user.core.isRoot = func() bool { return false }
	if lacks := w.lacks(user); len(lacks) != 1 || !strings.Contains(lacks[0], "supervisor is gone") {
		t.Errorf("it lacks %q", lacks)
	}
	if lacks := w.lacks(w.open()); len(lacks) > 0 {
		t.Errorf("it lacks %q", lacks)
	}
	now := w.handle()
	if now.VMM != h.VMM || now.Supervisor == h.Supervisor || !proc.Alive(now.Supervisor) {
		t.Errorf("%+v, was %+v", now, h)
	}
	if e := w.events(); !strings.Contains(e[len(e)-1], "new one looks after it") {
		t.Errorf("events are %q", e)
	}
	before := w.settled()
	w.lacks(w.open())
	w.becomes("a second look", before)
	kill(t, now.VMM)
	eventually(t, "its end is written down", func() bool { return w.row().Status == mvm.StatusCrashed })
	if v := w.row(); v.ExitCode != nil && *v.ExitCode != 137 || v.StatusReason == "" {
		t.Errorf("%v, %q", v.ExitCode, v.StatusReason)
	}
}

// What others did to a VM that runs is named, and mended by the next start.
func TestProblems(t *testing.T) {
	t.Parallel()
	w := newHosted(t)
	w.must("create")
	whole := w.settled()
	tap := w.row().TapDevice
	const bridge = "mvm-default"
	for _, tc := range []struct {
		name string
		do   func()
		says []string
	}{
		{"nothing", func() {}, nil},
		{"tap removed", func() { w.net.DelLink(tap) }, []string{"tap " + tap + " is gone"}},
		{"tap down", func() { w.net.SetDown(tap) }, []string{"tap " + tap + " is down"}},
		{"bridge removed", func() { w.net.DelLink(bridge) }, []string{"bridge " + bridge, "not on the bridge"}},
		{"rules flushed", func() { w.net.FlushTable(bridge) }, []string{"firewall rules"}},
		{"all of the network", func() { w.net.DelLink(tap); w.net.DelLink(bridge); w.net.FlushTable(bridge) }, []string{"bridge " + bridge, "tap " + tap + " is gone"}},
	} {
		tc.do()
		lacks := w.lacks(w.open())
		if len(lacks) != len(tc.says) || !slices.EqualFunc(tc.says, lacks, func(says, l string) bool { return strings.Contains(l, says) }) {
			t.Errorf("%s: it lacks %q, want %q", tc.name, lacks, tc.says)
		}
		w.must("stop")
		w.must("start")
		w.becomes(tc.name, whole)
		if lacks := w.lacks(w.open()); len(lacks) > 0 {
			t.Errorf("%s: after a start it lacks %q", tc.name, lacks)
		}
	}
	if err := removeFile(w.open().core.paths.abs("kernels/tiny/vmlinux")); err != nil {
		t.Fatal(err)
	}
	if lacks := w.lacks(w.open()); len(lacks) != 1 || !strings.Contains(lacks[0], "kernel is missing") {
		t.Errorf("it lacks %q", lacks)
	}
}

// A VM that is being made is not removed under whoever makes it; with force that is
// waited for.
func TestRemoveWhatIsBeingMade(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(*exec.Cmd) error
	}{
		{"it is made", func(c *exec.Cmd) error { return c.Process.Signal(unix.SIGCONT) }},
		{"its maker is killed", func(c *exec.Cmd) error { return c.Process.Kill() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newHosted(t)
			w.must("create other")
			before := w.settled()
			maker := w.command("stop:vm.create:disk:after", "create")
			if err := maker.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is being made", func() bool { return stopped(maker.Process.Pid) })
			_, err := w.open().VM.Remove(t.Context(), sel("web"))
			refused(t, err, mvm.ErrBusy, `another command (vm.create, pid `+strconv.Itoa(maker.Process.Pid)+`) is working on "web"`)
			remover := w.command("", "rm")
			var says bytes.Buffer
			remover.Stderr = &says
			if err := remover.Start(); err != nil {
				t.Fatal(err)
			}
			if err := tc.end(maker); err != nil {
				t.Fatal(err)
			}
			_ = maker.Wait()
			if err := remover.Wait(); err != nil && !strings.Contains(says.String(), "there is no VM") { // it may be gone before it is looked for
				t.Errorf("rm --force: %v, %s", err, &says)
			}
			w.becomes("removed", before)
		})
	}
}
