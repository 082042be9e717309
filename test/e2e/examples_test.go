package e2e

import (
	"strings"
	"testing"
)

// TestOrchestrate runs the reference's example as the program that it is here, and
// again: then all is there already, the VM's name too.
func TestOrchestrate(t *testing.T) {
	m := newMachine(t)
	mvm := m.bin
	m.bin = buildProgram(t, "examples/orchestrate", nil)
	out := m.must("-skip-host")
	for _, want := range []string{"Database ready.", "VMs run on qemu.", "Created VM: my-api-vm", "Registered VMs (1):", "running"} {
		if !strings.Contains(out, want) {
			t.Errorf("the program did not say %q:\n%s", want, out)
		}
	}
	m.refused([]string{"my-api-vm"}, "-skip-host")
	m.bin = mvm
	if got := strings.TrimSpace(m.must("exec", "my-api-vm", "--", "hostname")); got != "my-api-vm" {
		t.Errorf("the VM answers %q", got)
	}
}
