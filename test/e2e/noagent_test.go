package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mvmctl/mvm/internal/testenv"
)

// TestWithoutAgent reaches into a guest that has no agent: over its network, by SSH.
func TestWithoutAgent(t *testing.T) {
	m := newMachine(t)
	m.must("vm", "create", "n", "--image", "tiny", "--mem", "192", "--no-agent", "--wait=port:22")
	m.must("vm", "create", "g", "--image", "tiny", "--mem", "192", "--wait")
	t.Run("exec", func(t *testing.T) { m.of(t).netExec() })
	t.Run("cp", func(t *testing.T) { m.of(t).netCP() })
	t.Run("ssh", func(t *testing.T) { m.of(t).netSSH() })
	t.Run("forward", func(t *testing.T) { m.of(t).netForward() })
	t.Run("no server", func(t *testing.T) { m.of(t).noServer() }) // last: it ends the SSH server of g
}

func (m *machine) netExec() {
	t := m.t
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
	}{
		{[]string{"n", "--", "sh", "-c", "echo out; exit 7"}, 7, "out\n"},
		{[]string{"-e", "A=x y", "-w", "/tmp", "n", "--", "sh", "-c", `echo "$A"; pwd`}, 0, "x y\n/tmp\n"},
		{[]string{"n", "no-such-program"}, 127, ""},
	} {
		r := m.run(append([]string{"exec"}, c.args...)...)
		if r.code != c.code || r.stdout != c.stdout {
			t.Errorf("exec %q: %+v, want %+v", c.args, r, c)
		}
	}
	m.refused([]string{"no agent", "group"}, "exec", "-u", "1:1", "n", "id")
	m.refused([]string{"did not end within 1s"}, "exec", "-t", "1", "n", "--", "sleep", "600")
	var out bytes.Buffer
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	if err := m.begin(bytes.NewReader(data), &out, "exec", "n", "cat").Wait(); err != nil || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("cat gave %d of %d bytes, %v", out.Len(), len(data), err)
	}
}

func (m *machine) netCP() {
	t, dir := m.t, m.t.TempDir()
	big := strings.Repeat("2", 3<<20)
	for name, text := range map[string]string{"tree/one": "1", "tree/sub/two": big, "note": "new"} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	m.must("cp", dir+"/tree", "n:/root")
	m.must("cp", "n:/root/tree", "g:/root/mid") // to a guest with the agent
	m.must("cp", "g:/root/mid", "n:/root/again")
	m.must("cp", "n:again", dir+"/back")
	got, err := os.ReadFile(dir + "/back/sub/two")
	fi, statErr := os.Stat(dir + "/back/one")
	if err := errors.Join(err, statErr); err != nil || string(got) != big || fi.Mode() != 0o640 {
		t.Errorf("it came back with %d bytes, %v, %v", len(got), fi, err)
	}
	note := dir + "/note"
	for _, c := range []struct {
		words []string
		args  []string
	}{
		{[]string{`"n:/root/tree/one"`, "it exists", "--force"}, []string{note, "n:/root/tree/one"}},
		{[]string{`"n:/none"`, "no such file"}, []string{"n:/none", dir}},
		{[]string{`"n:/none/"`, "no such directory"}, []string{note, "n:/none/"}},
		{[]string{`"n:/etc/passwd"`, "not a directory"}, []string{note, dir + "/tree", "n:/etc/passwd"}},
		{[]string{note, "it exists"}, []string{"n:/etc/passwd", note}},
	} {
		r := m.run(append([]string{"cp"}, c.args...)...)
		for _, word := range append(c.words, "error: ", "hint: ") { // a slow one says first that it is copying
			if r.code != 1 || !strings.Contains(r.stderr, word) {
				t.Errorf("cp %q: no %q in %+v", c.args, word, r)
			}
		}
	}
	m.must("cp", "--force", note, "n:/root/tree/one")
	if got := m.must("exec", "n", "cat", "/root/tree/one"); got != "new" {
		t.Errorf("--force left %q", got)
	}
	if got := strings.TrimSpace(m.must("exec", "n", "--", "sh", "-c", "ls -A /root | grep mvm-cp || true")); got != "" {
		t.Errorf("left in the guest: %s", got)
	}
}

func (m *machine) netSSH() {
	t := m.t
	r := m.run("ssh", "n", "-c", "hostname; exit 5")
	if r.code != 5 || r.stdout != "n\n" {
		t.Errorf("%+v", r)
	}
	m.refused([]string{"no-such-key"}, "ssh", "n", "--key", "no-such-key", "-c", "true")
	m.must("key", "create", "stranger")
	m.refused([]string{"does not accept the key"}, "ssh", "n", "--key", "stranger", "-c", "true")
	testenv.Require(t, "ssh")
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, []byte(m.must("ssh-config", "n")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "ssh", "-F", config, "-o", "BatchMode=yes", "n", "hostname")
	cmd.Stdout = &out
	var err error
	m.ns.Do(func() { err = cmd.Start() })
	if err = errors.Join(err, cmd.Wait()); err != nil || out.String() != "n\n" {
		t.Errorf("OpenSSH: %q, %v", out.String(), err)
	}
}

func (m *machine) netForward() {
	t := m.t
	r, w := io.Pipe()
	cmd := m.begin(nil, w, "forward", "n", "0:22")
	lines := bufio.NewScanner(r)
	if !lines.Scan() {
		t.Fatal(lines.Err())
	}
	addr, _, _ := strings.Cut(lines.Text(), " ")
	var conn net.Conn
	var err error
	m.ns.Do(func() { conn, err = net.Dial("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "SSH-" {
		t.Errorf("%q, %v", got, err)
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGINT), cmd.Wait()); err != nil {
		t.Errorf("forward after Ctrl-C: %v", err)
	}
}

// noServer logs in to a guest whose SSH server is gone: the agent is there.
func (m *machine) noServer() {
	m.must("exec", "g", "--", "sh", "-c", "rm $(command -v dropbear); killall dropbear; true")
	r := m.run("ssh", "g", "-c", "hostname; exit 5")
	if r.code != 5 || r.stdout != "g\n" {
		m.t.Errorf("%+v", r)
	}
	m.refused([]string{"SSH server"}, "ssh", "g", "-c", "true", "--key", "default", "-t", "2")
}
