package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRun runs commands in VMs of their own, as a docker user would.
func TestRun(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	m.must("volume", "create", "data", "64M", "--mkfs", "ext4")
	before := m.listing()
	t.Run("streams", func(t *testing.T) { m.of(t).runStreams() })
	t.Run("terminal", func(t *testing.T) { m.of(t).runTerminal() })
	t.Run("signals", func(t *testing.T) { m.of(t).runSignals() })
	t.Run("killed", func(t *testing.T) { m.of(t).runKilled() })
	m.sameListing(before)
	t.Run("kept", func(t *testing.T) { m.of(t).runKept() })
	m.sameListing(before)
}

func (m *machine) runStreams() {
	var out bytes.Buffer
	cmd := m.begin(strings.NewReader("line\n"), &out, "run", "--mem", "192", "-e", "A=x y", "-w", "/tmp", "-u", "65534:65534", "tiny",
		"sh", "-c", `read l; echo "$l $A $(pwd) $(id -u)"; echo err >&2; exit 9`)
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 || out.String() != "line x y /tmp 65534\n" {
		m.t.Errorf("%v, %q", err, out.String())
	}
	r := m.run("run", "-v", "data:/srv", "tiny", "--", "sh", "-c", "echo kept >/srv/note; echo err >&2; kill -TERM $$")
	if r.code != 143 || r.stdout != "" || r.stderr != "err\n" {
		m.t.Errorf("%+v", r)
	}
	if r := m.run("run", "tiny", "no-such-program"); r.code != 127 {
		m.t.Errorf("%+v", r)
	}
	m.refused([]string{"did not end within 1s"}, "run", "--timeout", "1", "tiny", "sleep", "600")
	m.refused([]string{"nix"}, "run", "nix", "true")
	m.refused([]string{`"/tmp" is a directory of the host`, "mvm cp"}, "run", "-v", "/tmp:/mnt", "tiny", "true")
	m.refused([]string{"which port of the guest"}, "run", "--publish", "8080", "tiny", "true")
}

func (m *machine) runTerminal() {
	x := newTerminal(m.t)
	x.resize(90, 30)
	cmd := m.on(x, "run", "-it", "tiny") // a login shell
	x.expect("# ")
	x.typing("stty size; hostname; exit 4\r")
	x.expect("30 90\r\n")
	x.expect("run-")
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 4 {
		m.t.Errorf("the shell's end: %v", err)
	}
}

// started is a run whose command has said that it runs.
func (m *machine) started(script string) (*exec.Cmd, *bufio.Scanner) {
	m.t.Helper()
	r, w := io.Pipe()
	cmd := m.begin(nil, w, "run", "tiny", "--", "sh", "-c", script)
	lines := bufio.NewScanner(r)
	if !lines.Scan() || lines.Text() != "ready" {
		m.t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	return cmd, lines
}

func (m *machine) runSignals() {
	for _, c := range []struct {
		sig    syscall.Signal
		script string
		code   int
	}{
		{syscall.SIGINT, "echo ready; exec sleep 600", 130},
		{syscall.SIGTERM, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done", 3},
		{syscall.SIGHUP, "echo ready; exec sleep 600", 130}, // the terminal is gone: that of mvm itself
	} {
		cmd, _ := m.started(c.script)
		if err := cmd.Process.Signal(c.sig); err != nil {
			m.t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != c.code {
			m.t.Errorf("after %s: %v, want exit status %d", c.sig, err, c.code)
		}
		if vms := m.vms(); len(vms) > 0 {
			m.t.Errorf("after %s there is %+v", c.sig, vms)
		}
	}
}

// runKilled kills the command itself: the next one removes the VM.
func (m *machine) runKilled() {
	cmd, _ := m.started("echo ready; exec sleep 600")
	kill9(m.t, cmd.Process.Pid)
	_ = cmd.Wait()
	r := m.run("vm", "ls")
	if strings.Contains(r.stdout, "run-") || !strings.Contains(r.stderr, `"run-`) {
		m.t.Errorf("after kill -9: %+v", r)
	}
}

// runKept looks at a VM that stays: it has its name, the volume that another command
// wrote to, and its port leads there.
func (m *machine) runKept() {
	if got := m.must("run", "--keep", "--name", "kept", "-v", "data:ro:/srv", "-p", "127.0.0.1:18080:22", "tiny", "cat", "/etc/hostname", "/srv/note"); got != "kept\nkept\n" {
		m.t.Errorf("%q", got)
	}
	if got := m.must("exec", "kept", "hostname"); got != "kept\n" {
		m.t.Errorf("afterwards: %q", got)
	}
	m.until("the published port answers", func() bool {
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
		defer cancel()
		conn, err := m.ns.Dial(ctx, "tcp", "127.0.0.1:18080")
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close() }()
		greeting, err := bufio.NewReader(conn).ReadString('\n')
		return err == nil && strings.HasPrefix(greeting, "SSH-")
	})
	m.refused([]string{"kept"}, "run", "--name", "kept", "tiny", "true")
	m.must("vm", "rm", "--force", "kept")
}
