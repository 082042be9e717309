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
	"time"

	"github.com/mvmctl/mvm/internal/testenv"
)

// TestGuest reaches into guests in all the ways there are, without their network.
func TestGuest(t *testing.T) {
	m := newMachine(t)
	m.must("vm", "create", "g", "--image", "tiny", "--mem", "192", "--count", "2", "--wait")
	t.Run("exec", func(t *testing.T) { m.of(t).exec() })
	t.Run("frozen", func(t *testing.T) { m.of(t).frozen() })
	t.Run("exec many", func(t *testing.T) { m.of(t).execMany() })
	t.Run("shell", func(t *testing.T) { m.of(t).shell() })
	t.Run("cp", func(t *testing.T) { m.of(t).cp() })
	t.Run("ssh", func(t *testing.T) { m.of(t).openSSH() })
	t.Run("forward", func(t *testing.T) { m.of(t).forward() })
	t.Run("console", func(t *testing.T) { m.of(t).console() })
	t.Run("hostile", func(t *testing.T) { m.of(t).hostile() })
	t.Run("logs", func(t *testing.T) { m.of(t).logs() }) // last: it stops a VM
}

// TestGuestWithSystemd does the same with systemd in the first guest, and copies from
// there to one with busybox.
func TestGuestWithSystemd(t *testing.T) {
	m := newMachine(t, debian)
	m.must("vm", "create", "g-1", "--image", debian, "--mem", "512", "--disk-size", "2G", "--wait")
	m.must("vm", "create", "g-2", "--image", "tiny", "--mem", "192", "--wait")
	t.Run("exec", func(t *testing.T) { m.of(t).exec() })
	t.Run("exec many", func(t *testing.T) { m.of(t).execMany() })
	t.Run("shell", func(t *testing.T) { m.of(t).shell() })
	t.Run("cp", func(t *testing.T) { m.of(t).cp() })
	t.Run("ssh", func(t *testing.T) { m.of(t).openSSH() })
	t.Run("rsync", func(t *testing.T) { m.of(t).rsync() })
	t.Run("forward", func(t *testing.T) { m.of(t).forward() })
	t.Run("console", func(t *testing.T) { m.of(t).console() })
}

// of is the same machine in a subtest.
func (m *machine) of(t *testing.T) *machine {
	sub := *m
	sub.t = t
	return &sub
}

// begin starts mvm with stdin from in; it is killed at the end of the test.
func (m *machine) begin(in io.Reader, out io.Writer, args ...string) *exec.Cmd {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	m.t.Cleanup(cancel)
	cmd := m.command(ctx, nil, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	var err error
	m.ns.Do(func() { err = cmd.Start() })
	if err != nil {
		m.t.Fatal(err)
	}
	return cmd
}

func (m *machine) exec() {
	t := m.t
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"g-1", "--", "sh", "-c", "echo out; echo err >&2; exit 7"}, 7, "out\n", "err\n"},
		{[]string{"g-1", "hostname"}, 0, "g-1\n", ""},
		{[]string{"-e", "A=x y", "-w", "/tmp", "g-1", "--", "sh", "-c", `echo "$A"; pwd; id -u`}, 0, "x y\n/tmp\n0\n", ""},
		{[]string{"-u", "65534:65534", "g-1", "id", "-u"}, 0, "65534\n", ""},
		{[]string{"g-1", "--", "sh", "-c", "kill -TERM $$"}, 143, "", ""},
		{[]string{"g-1", "no-such-program"}, 127, "", "mvm: cannot run \"no-such-program\": there is no such program in the guest\n"},
		{[]string{"--interactive=false", "g-1", "cat"}, 0, "", ""},
		{[]string{"-t", "g-1", "--", "sh", "-c", "tty >/dev/null && stty size"}, 0, "24 80\r\n", ""},
	} {
		r := m.run(append([]string{"exec"}, c.args...)...)
		if r.code != c.code || r.stdout != c.stdout || r.stderr != c.stderr {
			t.Errorf("exec %q: %+v, want %+v", c.args, r, c)
		}
	}
	m.refused([]string{"did not end within 1s"}, "exec", "-t", "1", "g-1", "--", "sleep", "600")

	var out bytes.Buffer
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	if err := m.begin(bytes.NewReader(data), &out, "exec", "g-1", "cat").Wait(); err != nil || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("cat gave %d of %d bytes, %v", out.Len(), len(data), err)
	}

	r, w := io.Pipe()
	cmd := m.begin(nil, w, "exec", "g-1", "--", "sh", "-c", "trap 'echo got; exit 5' INT; echo ready; while :; do sleep 0.1; done")
	lines := bufio.NewScanner(r)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != "got" {
		t.Errorf("after Ctrl-C: %q", lines.Text())
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("the command's own end after Ctrl-C: %v", err)
	}
}

// frozen has a guest stand still while commands run in it: they end by their own
// limits.
func (m *machine) frozen() {
	pid := m.vm("g-2").PID
	r, w := io.Pipe()
	cmd := m.begin(nil, w, "exec", "-t", "4", "g-2", "--", "sh", "-c", "echo ready; sleep 600")
	lines := bufio.NewScanner(r)
	if !lines.Scan() {
		m.t.Fatal(lines.Err())
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		m.t.Errorf("exec in a guest that stands still: %v", err)
	}
	m.refused([]string{"g-2"}, "exec", "-t", "1", "g-2", "true")
}

func (m *machine) execMany() {
	const n = 100
	var outs [n]bytes.Buffer
	var cmds [n]*exec.Cmd
	for i := range cmds {
		cmds[i] = m.begin(nil, &outs[i], "exec", "g-1", "--", "sh", "-c", "sleep 0.2; hostname")
	}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil || outs[i].String() != "g-1\n" {
			m.t.Errorf("%d: %q, %v", i, outs[i].String(), err)
		}
	}
}

func (m *machine) shell() {
	x := newTerminal(m.t)
	x.resize(101, 41)
	cmd := m.on(x, "exec", "g-1")
	x.typing("stty size; echo sh''ell\r")
	x.expect("41 101\r\n")
	x.expect("shell\r\n")
	x.resize(77, 22)
	x.typing("until [ \"$(stty size)\" = '22 77' ]; do sleep 0.1; done; echo re''sized\r")
	x.expect("resized\r\n")
	x.typing("sh -c 'echo slee\"\"ping; exec sleep 600'\r")
	x.expect("sleeping\r\n") // in the foreground now
	x.typing("\x03")
	x.expect("# ") // the prompt: what is typed before it may be flushed
	x.typing("echo still he''re; exit 6\r")
	x.expect("still here\r\n")
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 6 {
		m.t.Errorf("the shell's end: %v", err)
	}
}

func (m *machine) cp() {
	t, dir := m.t, m.t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	write("tree/one", "1")
	write("tree/sub/two", strings.Repeat("2", 3<<20))
	if err := os.Symlink("../one", dir+"/tree/sub/link"); err != nil {
		t.Fatal(err)
	}
	note := write("note", "new")

	m.must("cp", dir+"/tree", "g-1:/root")
	m.must("cp", "g-1:/root/tree", "g-2:") // from VM to VM
	m.must("cp", "g-2:tree", dir+"/back")
	for _, name := range []string{"one", "sub/two", "sub/link"} {
		a, err1 := os.ReadFile(filepath.Join(dir, "tree", name))
		b, err2 := os.ReadFile(filepath.Join(dir, "back", name))
		fa, err3 := os.Lstat(filepath.Join(dir, "tree", name))
		fb, err4 := os.Lstat(filepath.Join(dir, "back", name))
		if err := errors.Join(err1, err2, err3, err4); err != nil || !bytes.Equal(a, b) || fa.Mode() != fb.Mode() {
			t.Errorf("%s came back with %d of %d bytes and mode %v, %v", name, len(b), len(a), fb, err)
		}
	}
	for _, c := range []struct {
		words []string
		args  []string
	}{
		{[]string{`"g-1:/root/tree/one"`, "it exists", "--force"}, []string{note, "g-1:/root/tree/one"}},
		{[]string{`"g-1:/none"`, "no such file"}, []string{"g-1:/none", dir}},
		{[]string{`none"`, "no such file"}, []string{dir + "/none", "g-1:"}},
		{[]string{`"g-1:/none/"`, "no such directory"}, []string{note, "g-1:/none/"}},
		{[]string{note, "not a directory"}, []string{"g-1:/etc/passwd", "g-1:/etc/group", note}},
		{[]string{note, "it exists"}, []string{"g-1:/etc/passwd", note}},
	} {
		m.refused(c.words, append([]string{"cp"}, c.args...)...)
	}
	if got := m.must("exec", "g-1", "cat", "/root/tree/one"); got != "1" {
		t.Errorf("a refused copy changed the destination: %q", got)
	}
	m.must("cp", "-f", note, "g-1:/root/tree/one")
	if got := m.must("exec", "g-1", "cat", "/root/tree/one"); got != "new" {
		t.Errorf("after cp -f: %q", got)
	}

	// A copy that is ended leaves neither its part nor what it was staged in.
	r, w := io.Pipe()
	cmd := m.begin(nil, w, "exec", "g-2", "--", "sh", "-c", "dd if=/dev/zero of=/root/big bs=1M count=40 2>/dev/null; echo done")
	lines := bufio.NewScanner(r)
	for lines.Scan() && lines.Text() != "done" {
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	end := m.begin(nil, io.Discard, "cp", "g-2:/root/big", "g-1:/root/big")
	m.until("the copy has begun or ended", func() bool {
		return strings.Contains(m.must("exec", "g-1", "ls", "-a", "/root"), "big") || strings.Contains(m.must("exec", "g-1", "ls", "-a", "/root"), ".mvm-cp-")
	})
	_ = end.Process.Signal(syscall.SIGINT)
	ended := end.Wait()
	m.until("nothing is staged", func() bool { return !strings.Contains(m.must("exec", "g-1", "ls", "-a", "/root"), ".mvm-cp-") })
	if size := strings.TrimSpace(m.must("exec", "g-1", "--", "sh", "-c", "stat -c %s /root/big 2>/dev/null || echo none")); (ended != nil && size != "none") || (ended == nil && size != "41943040") {
		t.Errorf("the copy ended with %v and left %s bytes", ended, size)
	}
}

func (m *machine) console() {
	t := m.t
	if got := m.must("console", "g-1", "--state"); !strings.HasPrefix(got, "running, process ") {
		t.Errorf("console --state: %q", got)
	}
	// A line that nobody has open forgets its size, and there is no getty in every image.
	m.must("exec", "g-1", "--", "sh", "-c", "sleep 1000 < /dev/ttyS0 > /dev/null 2>&1 & echo said before > /dev/console")
	x, y := newTerminal(t), newTerminal(t)
	x.resize(101, 41)
	a := m.on(x, "console", "g-1")
	x.expect("said before")
	sized := func(size string) {
		t.Helper()
		m.until("the console has the size "+size, func() bool {
			return m.must("exec", "g-1", "--", "sh", "-c", "stty size < /dev/ttyS0") == size+"\n"
		})
	}
	sized("41 101") // said before y is there: the last one counts
	y.resize(93, 31)
	b := m.on(y, "console", "g-1")
	y.expect("said before") // shown to who comes late
	m.must("exec", "g-1", "--", "sh", "-c", "echo said by the guest > /dev/console")
	for _, v := range []*terminal{x, y} {
		v.expect("said by the guest")
	}
	for _, size := range []string{"31 93", "22 77"} { // of the terminal of who came last, and when it changes
		if size == "22 77" {
			y.resize(77, 22)
		}
		sized(size)
	}
	x.typing("\x18d")
	x.expect("detached")
	if err := a.Wait(); err != nil {
		t.Error(err)
	}
	m.must("console", "g-1", "--kill")
	y.expect("the console was closed")
	if err := b.Wait(); err != nil {
		t.Error(err)
	}
	if got := m.must("console", "g-1", "--state"); got != "not running\n" {
		t.Errorf("after console --kill: %q", got)
	}
	if got := m.must("console", "g-1"); !strings.Contains(got, "said by the guest") { // its input is empty
		t.Errorf("the console attached anew shows %q", got)
	}
	if got := m.vm("g-1").Status; got != "running" {
		t.Errorf("the VM is %s", got)
	}
}

func (m *machine) logs() {
	t := m.t
	// The agent answers before the image's init has said that.
	m.until("the boot's last message", func() bool { return strings.Contains(m.must("logs", "g-2", "-n", "all"), "Tiny Linux is up") })
	if got := m.must("logs", "g-2", "-n", "1"); strings.Count(got, "\n") != 1 {
		t.Errorf("logs -n 1: %q", got)
	}
	m.must("logs", "g-2", "--os") // mostly empty
	for _, line := range strings.Split(strings.TrimSpace(m.must("logs", "g-2", "-n", "5", "-t")), "\n") {
		word, _, _ := strings.Cut(line, " ")
		if at, err := time.Parse(time.RFC3339, word); err != nil || time.Since(at) > time.Hour || time.Until(at) > 0 {
			t.Errorf("logs -t: %q", line)
		}
	}
	r, w := io.Pipe()
	cmd := m.begin(nil, w, "logs", "g-2", "-n", "0", "-f")
	lines := bufio.NewScanner(r)
	until := func(text string) {
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("%q did not come: %v", text, lines.Err())
	}
	say := func(text string) { m.must("exec", "g-2", "--", "sh", "-c", "echo "+text+" > /dev/console") }
	say("hello")
	until("hello")
	end := m.underWay("g-2")
	m.must("vm", "stop", "--force", "g-2")
	end()
	m.must("vm", "start", "g-2", "--wait")
	say("again")
	until("again")
	go func() { _, _ = io.Copy(io.Discard, r) }()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("logs -f after Ctrl-C: %v", err)
	}
}

// openSSH reaches a guest with the programs of OpenSSH.
func (m *machine) openSSH() {
	testenv.Require(m.t, "ssh")
	t, dir := m.t, m.t.TempDir()
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, []byte(m.must("ssh-config", "g-1")), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(program string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		out, err := exec.CommandContext(ctx, program, append([]string{"-F", config, "-o", "BatchMode=yes"}, args...)...).Output()
		return string(out), err
	}
	out, err := run("ssh", "g-1", "hostname; exit 9")
	var exit *exec.ExitError
	if out != "g-1\n" || !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("ssh: %q, %v", out, err)
	}
	if _, err := run("scp", "-r", config, "g-1:/root/by-scp"); err != nil {
		t.Errorf("scp: %v", err)
	}
	if got := m.must("exec", "g-1", "head", "-1", "/root/by-scp"); got != "Host g-1\n" {
		t.Errorf("scp copied %q", got)
	}
	batch := filepath.Join(dir, "batch")
	if err := os.WriteFile(batch, []byte("put "+config+" /root/by-sftp\nls /root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("sftp", "-b", batch, "g-1"); err != nil || !strings.Contains(out, "by-sftp") {
		t.Errorf("sftp: %q, %v", out, err)
	}
	greeting := m.must("connect", "g-1", "--port", "22")
	if !strings.HasPrefix(greeting, "SSH-2.0-") {
		t.Errorf("port 22 of the guest says %q", greeting)
	}
	m.refused([]string{"port 9"}, "connect", "g-1", "--port", "9")
}

// rsync moves a tree in and out again by rsync(1), over ssh(1).
func (m *machine) rsync() {
	testenv.Require(m.t, "ssh", "rsync")
	t, dir := m.t, m.t.TempDir()
	config := filepath.Join(dir, "config")
	if err := errors.Join(os.WriteFile(config, []byte(m.must("ssh-config", "g-1")), 0o600), os.MkdirAll(dir+"/tree/sub", 0o755),
		os.WriteFile(dir+"/tree/sub/file", bytes.Repeat([]byte("x"), 1<<20), 0o640), os.Symlink("sub/file", dir+"/tree/link")); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "rsync", append([]string{"-a", "-e", "ssh -o BatchMode=yes -F " + config}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("rsync %q: %v\n%s", args, err, out)
		}
	}
	run(dir+"/tree", "g-1:/root/rsync/")
	run("g-1:/root/rsync/tree", dir+"/back/")
	got, err := os.ReadFile(dir + "/back/tree/sub/file")
	link, linkErr := os.Readlink(dir + "/back/tree/link")
	if err := errors.Join(err, linkErr); err != nil || len(got) != 1<<20 || link != "sub/file" {
		t.Errorf("%d bytes and the link %q came back, %v", len(got), link, err)
	}
}

func (m *machine) forward() {
	t := m.t
	r, w := io.Pipe()
	cmd := m.begin(nil, w, "forward", "g-1", "0:22", "0:9")
	lines := bufio.NewScanner(r)
	var addrs []string
	for len(addrs) < 2 && lines.Scan() {
		addr, _, _ := strings.Cut(lines.Text(), " ")
		addrs = append(addrs, addr)
	}
	if len(addrs) < 2 {
		t.Fatal(addrs, lines.Err())
	}
	var conns [3]net.Conn
	for i, addr := range []string{addrs[0], addrs[0], addrs[1]} {
		var err error
		m.ns.Do(func() { conns[i], err = net.Dial("tcp", addr) })
		if err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	for i, want := range []string{"SSH-2.0-", "SSH-2.0-", ""} {
		got := make([]byte, len("SSH-2.0-"))
		n, _ := io.ReadFull(conns[i], got)
		if string(got[:n]) != want {
			t.Errorf("connection %d: %q, want %q", i, got[:n], want)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("forward after Ctrl-C: %v", err)
	}
}
