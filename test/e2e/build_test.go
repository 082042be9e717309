package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// buildProgram builds a program of this module, with files replaced as the
// overlay says (go help build).
func buildProgram(t *testing.T, pkg string, overlay map[string]string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(pkg))
	args := []string{"build", "-o", out}
	if overlay != nil {
		data, err := json.Marshal(map[string]any{"Replace": overlay})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "overlay.json")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-overlay", file)
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, "github.com/mvmctl/mvm/"+pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	return out
}

// TestGoInstallNeedsNoAgent boots a VM with an mvm that has no agent built in, as
// `go install` makes it: the guest gets mvm itself.
func TestGoInstallNeedsNoAgent(t *testing.T) {
	m := newMachine(t)
	agents, err := filepath.Glob("../../internal/guest/agentbin/bin/mvm-agent-*")
	if err != nil {
		t.Fatal(err)
	}
	without := map[string]string{}
	for _, a := range agents {
		abs, err := filepath.Abs(a)
		if err != nil {
			t.Fatal(err)
		}
		without[abs] = ""
	}
	m.bin = buildProgram(t, "cmd/mvm", without)
	m.must("vm", "create", "bare", "--image", "tiny", "--mem", "256", "--wait")
	if got := m.ssh("bare", "hostname"); got != "bare" {
		t.Errorf("hostname is %q", got)
	}
	if out := m.must("vm", "inspect", "bare", "--json"); !strings.Contains(out, `"hostname": "bare"`) {
		t.Errorf("the agent does not answer: %s", out)
	}
}

// TestExample runs the example program of the Go API.
func TestExample(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	before := m.listing()
	m.bin = buildProgram(t, "examples/firstvm", nil)
	r := m.run()
	if r.code != 0 || !strings.Contains(r.stdout, "example runs at 172.27.0.2") || !strings.Contains(r.stdout, "Linux "+kernelOf(m)) {
		t.Errorf("exit %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	m.bin = binary(t)
	m.sameListing(before)
}

func kernelOf(m *machine) string {
	bin := m.bin
	m.bin = binary(m.t)
	defer func() { m.bin = bin }()
	return m.kernelVersion()
}

// TestNotRoot is told what to do, which depends on whether this host was set up.
func TestNotRoot(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	copyTree(t, m.cache, dir)
	out := m.ns.Run("sh", "-c", "chmod 755 "+dir+"; chown -R nobody "+dir+"; cp "+m.bin+" "+dir+"/mvm; chmod 755 "+dir+"/mvm; "+
		"setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME="+dir+" MVM_CONFIG_DIR="+dir+"/config MVM_CACHE_DIR="+dir+" "+dir+"/mvm vm create a --image tiny 2>&1 || true")
	if !strings.Contains(out, "error: cannot create VM \"a\": creating a VM needs root or the group mvm") || !strings.Contains(out, "hint: run: sudo mvm host init") && !strings.Contains(out, "hint: run: sudo usermod -aG mvm nobody") {
		t.Errorf("told: %q", out)
	}
}
