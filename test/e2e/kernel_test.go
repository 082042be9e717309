package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/testenv"
)

// TestOfficialKernel builds a kernel from the distribution's source with the smallest
// configuration, and boots a guest from it.
func TestOfficialKernel(t *testing.T) {
	testenv.Require(t, "kernel-build")
	m := newMachine(t)
	build := []string{"kernel", "pull", "official", "--source", "package", "--base", "minimal"}
	prepare(t, m.cache, build...)

	var seen struct {
		Kernel struct {
			Version      string `json:"version"`
			Verification string `json:"verification"`
			Source       string `json:"source"`
		} `json:"kernel"`
		File struct {
			PVH    bool `json:"pvh"`
			Config bool `json:"config"`
		} `json:"file"`
	}
	if err := json.Unmarshal([]byte(m.must("kernel", "inspect", "official", "--json")), &seen); err != nil {
		t.Fatal(err)
	}
	if seen.Kernel.Verification != "package" || !strings.HasPrefix(seen.Kernel.Source, "linux-source-") || !seen.File.PVH || !seen.File.Config {
		t.Errorf("inspect shows %+v", seen)
	}
	m.must("vm", "create", "built", "--image", "tiny", "--kernel", "official", "--wait")
	if got := strings.TrimSpace(m.must("exec", "built", "--", "uname", "-r")); got != seen.Kernel.Version {
		t.Errorf("the guest runs %q, not %q", got, seen.Kernel.Version)
	}
	if got := m.must("exec", "built", "--", "cat", "/proc/version"); !strings.Contains(got, "(mvm@mvm)") {
		t.Errorf("the guest's kernel is not ours: %q", got)
	}
	m.must("vm", "rm", "--force", "built")

	var again struct {
		Info []string `json:"info_messages"`
	}
	if err := json.Unmarshal([]byte(m.must(append(build, "--json")...)), &again); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(again.Info, "\n"), "built before") {
		t.Errorf("the same kernel was built twice: %q", again.Info)
	}
}
