package e2e

import (
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/image/imagetest"
)

// TestImportedImageBoots boots a root that came as a partition of a compressed qcow2
// disk, then one that was made of that VM's disk while it ran.
func TestImportedImageBoots(t *testing.T) {
	imagetest.Require(t)
	m := newMachine(t)
	mk := imagetest.New(t)
	disk := mk.Compress("gz", mk.Format("qcow2", mk.DiskIn("gpt", m.imageFile("tiny"), mk.Path("disk"))))
	if got := strings.TrimSpace(m.must("image", "import", "boxed", disk, "--version", "1")); got != "boxed:1" {
		t.Errorf("import printed %q", got)
	}
	m.must("vm", "create", "one", "--image", "boxed", "--wait")
	m.must("exec", "one", "--", "sh", "-c", "echo precious >/root/kept")
	m.must("image", "import", "golden", "one")
	if got := m.must("exec", "one", "--", "cat", "/root/kept"); strings.TrimSpace(got) != "precious" {
		t.Errorf("the VM that was copied has %q", got)
	}
	m.must("vm", "rm", "--force", "one")
	m.must("vm", "create", "two", "--image", "golden", "--wait")
	if got := m.must("exec", "two", "--", "sh", "-c", "cat /root/kept; hostname"); strings.Join(strings.Fields(got), " ") != "precious two" {
		t.Errorf("the VM that was made of its image has %q", got)
	}
}
