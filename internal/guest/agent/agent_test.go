package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/agent"
	"github.com/mvmctl/mvm/internal/guest/tree"
	"github.com/mvmctl/mvm/internal/key"
	"github.com/mvmctl/mvm/internal/testenv"
)

// TestMain lets the test binary be the agent's child for file transfers.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "sftp" {
		if err := agent.ServeSFTP(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && (os.Args[1] == "pack" || os.Args[1] == "unpack") {
		signal.Ignore(syscall.SIGHUP, syscall.SIGTERM) // as agentmain does
		os.Exit(tree.Serve(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func pair(t *testing.T) *key.Pair {
	t.Helper()
	p, err := key.Generate(key.ED25519, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// me is a user spec that needs no passwd entry and no privilege.
func me() string { return fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid()) }

type lab struct {
	dial  guest.DialFunc
	data  guest.DialFunc // to the agent's data port
	login guest.Login
}

// start serves an agent on a socket of its own.
func start(t *testing.T) lab {
	t.Helper()
	host, user := pair(t), pair(t)
	s, err := agent.NewServer(guest.AgentParams{
		HostKey: string(host.Private), AuthorizedKey: user.Public.Line(), Version: "v9\x1b[31m", Port: 1024, PowerOff: "acpi",
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	data, err := net.Listen("unix", filepath.Join(t.TempDir(), "d"))
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() { _ = s.ServeListener(ctx, l) })
	done.Go(func() { s.ServeDataListener(ctx, data) })
	t.Cleanup(func() { cancel(); done.Wait() })
	to := func(l net.Listener) guest.DialFunc {
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", l.Addr().String())
		}
	}
	return lab{
		dial:  to(l),
		data:  to(data),
		login: guest.Login{HostKey: host.Public.Key, Signers: []ssh.Signer{user.Signer}, User: me()},
	}
}

func connect(t *testing.T, l lab) *guest.Client {
	t.Helper()
	c, err := guest.Dial(context.Background(), l.dial, l.login)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestExec(t *testing.T) {
	c, dir := connect(t, start(t)), t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("no"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		cmd      guest.Cmd
		want     guest.Status
		out, err string
	}{
		{"status", guest.Cmd{Shell: "exit 7"}, guest.Status{Code: 7}, "", ""},
		{"streams apart", guest.Cmd{Shell: "echo out; echo err >&2"}, guest.Status{}, "out\n", "err\n"},
		{"argv unquoted", guest.Cmd{Argv: []string{"printf", "%s|", "a b", "$HOME", "'"}}, guest.Status{}, "a b|$HOME|'|", ""},
		{"stdin", guest.Cmd{Argv: []string{"cat"}, Stdin: strings.NewReader("in")}, guest.Status{}, "in", ""},
		{"no stdin is empty", guest.Cmd{Argv: []string{"cat"}}, guest.Status{}, "", ""},
		{"environment", guest.Cmd{Shell: `echo "$A"`, Env: []string{"A=x y"}}, guest.Status{}, "x y\n", ""},
		{"environment over login's", guest.Cmd{Shell: `echo "$HOME"`, Env: []string{"HOME=/h"}}, guest.Status{}, "/h\n", ""},
		{"directory", guest.Cmd{Argv: []string{"pwd"}, Dir: dir}, guest.Status{}, dir + "\n", ""},
		{"missing directory", guest.Cmd{Argv: []string{"pwd"}, Dir: dir + "/no"}, guest.Status{Code: 126}, "", fmt.Sprintf("mvm: cannot change to the directory %q\n", dir+"/no")},
		{"signal", guest.Cmd{Shell: "kill -TERM $$"}, guest.Status{Code: 143, Signal: "TERM"}, "", ""},
		{"missing program", guest.Cmd{Argv: []string{"no-such-program"}}, guest.Status{Code: 127}, "", "mvm: cannot run \"no-such-program\": there is no such program in the guest\n"},
		{"not executable", guest.Cmd{Argv: []string{script}}, guest.Status{Code: 126}, "", fmt.Sprintf("mvm: cannot run %q: permission denied\n", script)},
		{"unknown user", guest.Cmd{Argv: []string{"id"}, User: "nobody-has-this"}, guest.Status{Code: 126}, "", "mvm: no such user in the guest: \"nobody-has-this\"\n"},
		{"a daemon does not hold the session", guest.Cmd{Shell: "sleep 600 & echo up"}, guest.Status{}, "up\n", ""},
		{"output closed early", guest.Cmd{Shell: "exec >&- 2>&-; exit 3"}, guest.Status{Code: 3}, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			tc.cmd.Stdout, tc.cmd.Stderr = &out, &errs
			st, err := c.Exec(limit(t), tc.cmd)
			if err != nil {
				t.Fatal(err)
			}
			if st != tc.want || out.String() != tc.out || errs.String() != tc.err {
				t.Errorf("got %+v, stdout %q, stderr %q; want %+v, %q, %q", st, out.String(), errs.String(), tc.want, tc.out, tc.err)
			}
		})
	}
}

func TestExecAsUser(t *testing.T) {
	testenv.Require(t, "root")
	var out bytes.Buffer
	st, err := connect(t, start(t)).Exec(limit(t), guest.Cmd{Shell: "id -u; id -g; id -G", User: "4242:4343", Dir: "/", Stdout: &out})
	if err != nil || st.Code != 0 || out.String() != "4242\n4343\n4343\n" {
		t.Errorf("%+v %v %q", st, err, out.String())
	}
}

func TestTerminal(t *testing.T) {
	c := connect(t, start(t))
	resize, r := make(chan guest.Size, 1), &watch{want: "40 100", then: make(chan struct{})}
	in, type_ := io.Pipe()
	go func() {
		<-r.then
		resize <- guest.Size{Cols: 33, Rows: 11}
		_, _ = io.WriteString(type_, "go\n")
	}()
	script := `tty >/dev/null || exit 9; stty size; read x; while [ "$(stty size)" != "11 33" ]; do :; done; echo "resized $TERM"`
	st, err := c.Exec(limit(t), guest.Cmd{Shell: script, TTY: true, Term: "vt52", Size: guest.Size{Cols: 100, Rows: 40}, Resize: resize, Stdin: in, Stdout: r})
	if err != nil || st.Code != 0 || !strings.Contains(r.String(), "resized vt52") {
		t.Errorf("%+v %v %q", st, err, r.String())
	}
}

// watch collects output and tells when want was in it.
type watch struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	want string
	then chan struct{}
	told bool
}

func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if !w.told && strings.Contains(w.buf.String(), w.want) {
		w.told = true
		close(w.then)
	}
	return len(p), nil
}

func (w *watch) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func TestSignalReachesTheGroup(t *testing.T) {
	sig, w := make(chan string, 1), &watch{want: "ready", then: make(chan struct{})}
	go func() { <-w.then; sig <- "INT" }()
	// The inner shell says that it is ready, so that the outer one has forked it
	// by then: a signal just before a fork is handled when the child has ended.
	st, err := connect(t, start(t)).Exec(limit(t), guest.Cmd{
		Shell:  `trap 'echo outer; exit 5' INT; (trap 'echo inner; exit' INT; echo ready; while :; do sleep 0.05; done)`,
		Signal: sig, Stdout: w,
	})
	if err != nil || st.Code != 5 || w.String() != "ready\ninner\nouter\n" {
		t.Errorf("%+v %v %q", st, err, w.String())
	}
}

func TestCancelEndsTheCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ended")
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{want: "ready", then: make(chan struct{})}
	go func() { <-w.then; cancel() }()
	_, err := connect(t, start(t)).Exec(ctx, guest.Cmd{Shell: `trap 'echo x >` + file + `; exit' TERM HUP; echo ready; while :; do sleep 0.05; done`, Stdout: w})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	for end := time.Now().Add(30 * time.Second); ; {
		if _, err := os.Stat(file); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the command still runs")
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestHundredAtOnce(t *testing.T) {
	c := connect(t, start(t))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var out bytes.Buffer
			st, err := c.Exec(limit(t), guest.Cmd{Argv: []string{"echo", strconv.Itoa(i)}, Stdout: &out})
			if err != nil || st.Code != 0 || out.String() != strconv.Itoa(i)+"\n" {
				t.Errorf("%d: %+v %v %q", i, st, err, out.String())
			}
		}()
	}
	wg.Wait()
}

func TestFiles(t *testing.T) {
	s, err := connect(t, start(t)).SFTP(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	path, want := filepath.Join(t.TempDir(), "f"), bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	f, err := s.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadFrom(bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
		t.Error("the file differs")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestForwardReachesOwnPortsOnly(t *testing.T) {
	c := connect(t, start(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	conn, err := c.DialPort(limit(t), "localhost", port)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "echo"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "echo" {
		t.Errorf("%q %v", got, err)
	}
	for _, host := range []string{"192.0.2.1", "example.org", "169.254.169.254"} {
		if _, err := c.DialPort(limit(t), host, 80); !errors.Is(err, mvm.ErrUnavailable) || !strings.Contains(err.Error(), "not an address of this guest") {
			t.Errorf("%s: %v", host, err)
		}
	}
	_ = l.Close() // nothing listens there now, at none of its addresses
	if _, err := c.DialPort(limit(t), "localhost", port); !errors.Is(err, mvm.ErrUnavailable) || err.Error() != fmt.Sprintf("port %d in the guest: connection refused", port) {
		t.Errorf("a closed port: %v", err)
	}
}

func TestReadyIsPrintable(t *testing.T) {
	r, err := connect(t, start(t)).Ready(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	name, _ := os.Hostname()
	if r.Hostname != name || r.Version != "v9 [31m" || r.BootID == "" || r.Uptime <= 0 || r.Kernel == "" {
		t.Errorf("%+v", r)
	}
}

func TestLoginIsRefused(t *testing.T) {
	l := start(t)
	for _, tc := range []struct {
		name  string
		login guest.Login
		kind  mvm.Kind
	}{
		{"other user key", guest.Login{HostKey: l.login.HostKey, Signers: []ssh.Signer{pair(t).Signer}}, mvm.ErrPrivilege},
		{"no key", guest.Login{HostKey: l.login.HostKey}, mvm.ErrPrivilege},
		{"other host key", guest.Login{HostKey: pair(t).Public.Key, Signers: l.login.Signers}, mvm.ErrBroken},
		{"no host key", guest.Login{Signers: l.login.Signers}, mvm.ErrInvalid},
	} {
		_, err := guest.Dial(limit(t), l.dial, tc.login)
		if !errors.Is(err, tc.kind) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v, want %v with a hint", tc.name, err, tc.kind)
		}
		if _, _, err := guest.WaitReady(limit(t), l.dial, tc.login); !errors.Is(err, tc.kind) {
			t.Errorf("%s: waiting gave %v", tc.name, err)
		}
	}
}

func TestBadParams(t *testing.T) {
	k := pair(t)
	for _, p := range []guest.AgentParams{
		{}, {HostKey: string(k.Private)}, {HostKey: "x", AuthorizedKey: k.Public.Line()},
	} {
		if _, err := agent.NewServer(p); err == nil {
			t.Errorf("%+v was accepted", p)
		}
	}
	if _, err := agent.ReadParams(strings.NewReader("{")); err == nil {
		t.Error("half a document was accepted")
	}
}
