package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// version builds mvm as if it were a release, and returns the same machine with it.
func (m *machine) version(v string) *machine {
	m.t.Helper()
	other := *m
	other.bin = filepath.Join(m.t.TempDir(), "mvm-"+v)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X github.com/mvmctl/mvm/api.Version="+v, "-o", other.bin, "github.com/mvmctl/mvm/cmd/mvm")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		m.t.Fatalf("build mvm: %v\n%s", err, out)
	}
	return &other
}

func (m *machine) agentVersion(vm string) string {
	m.t.Helper()
	var got struct {
		Guest *struct {
			Agent string `json:"agent"`
		} `json:"guest"`
	}
	for range 10 { // inspect does not wait for a guest that is slow
		if err := json.Unmarshal([]byte(m.must("vm", "inspect", vm, "--json")), &got); err != nil {
			m.t.Fatal(err)
		}
		if got.Guest != nil {
			return got.Guest.Agent
		}
	}
	m.t.Fatalf("inspect says nothing of the guest of %s", vm)
	return ""
}

// TestAgentIsRenewed has an older mvm make a VM and a newer one use it.
func TestAgentIsRenewed(t *testing.T) {
	m := newMachine(t)
	first, second := m.version("v1.9.0"), m.version("v1.10.0-3-gabcdef")
	first.must("vm", "create", "r", "--image", "tiny", "--wait")
	if got := first.agentVersion("r"); got != "v1.9.0" {
		t.Fatalf("the agent is of %q", got)
	}

	// While something runs it stays.
	r, w := io.Pipe()
	busy := first.begin(nil, w, "exec", "r", "--", "sh", "-c", "echo ready; exec sleep 600")
	if lines := bufio.NewScanner(r); !lines.Scan() {
		t.Fatal(lines.Err())
	}
	if got := second.must("exec", "r", "hostname"); got != "r\n" || second.agentVersion("r") != "v1.9.0" {
		t.Errorf("with a command under way: %q, agent of %s", got, second.agentVersion("r"))
	}
	if err := busy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = busy.Wait()

	got := second.run("exec", "r", "--", "sh", "-c", "echo a; echo b >&2; exit 3")
	if got.code != 3 || got.stdout != "a\n" || !strings.Contains(got.stderr, "renewed from v1.9.0 to v1.10.0-3-gabcdef") || !strings.HasSuffix(got.stderr, "b\n") {
		t.Fatalf("%+v\nits console:\n%s", got, second.run("logs", "r").stdout)
	}
	if got := second.run("exec", "r", "hostname"); got.stdout != "r\n" || got.stderr != "" {
		t.Errorf("again: %+v", got)
	}
	if got := first.run("exec", "r", "hostname"); got.stdout != "r\n" || got.stderr != "" {
		t.Errorf("by the older mvm: %+v", got)
	}
	if got := second.agentVersion("r"); got != "v1.10.0-3-gabcdef" {
		t.Errorf("the agent is of %q now", got)
	}
	note := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(note, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	second.must("cp", note, "r:/root/note")
	second.must("vm", "stop", "r") // the new agent asks the init
	if v := second.vm("r"); v.Status != "stopped" {
		t.Errorf("it is %s", v.Status)
	}
	second.must("vm", "start", "r", "--wait")
	if got := second.agentVersion("r"); got != "v1.10.0-3-gabcdef" {
		t.Errorf("started anew the agent is of %q", got)
	}
}
