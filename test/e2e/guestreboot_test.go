package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestGuestReboots resets a guest from within: neither the VMM nor its supervisor
// end, and the channel to the agent begins anew.
func TestGuestReboots(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	m.must("vm", "create", "web", "--image", "tiny", "--mem", "256", "--wait")
	before := m.vm("web")
	first := m.must("exec", "web", "--", "cat", "/proc/sys/kernel/random/boot_id")
	began := time.Now()
	m.run("exec", "web", "--", "reboot", "-f") // how it ends is not told: its guest is gone
	t.Logf("the request returned after %v", time.Since(began))
	deadline := time.Now().Add(patience)
	for {
		r := m.run("exec", "web", "--", "cat", "/proc/sys/kernel/random/boot_id")
		t.Logf("%v: exit %d %s", time.Since(began), r.code, strings.TrimSpace(r.stderr))
		if r.code == 0 && r.stdout != first {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest is not back: exit %d, %s", r.code, r.stderr)
		}
	}
	if after := m.vm("web"); after.PID != before.PID || after.Status != "running" {
		t.Errorf("web is %+v, and was %+v before", after, before)
	}
}
