package guest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/key"
	"github.com/mvmctl/mvm/internal/run"
)

func pair(t *testing.T) *key.Pair {
	t.Helper()
	p, err := key.Generate(key.ED25519, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func short(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// serve listens on a loopback port and gives each connection to fn.
func serve(t *testing.T, fn func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go fn(c)
		}
	}()
	return l.Addr().String()
}

func dialer(addr string) guest.DialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

func unavailable(t *testing.T, what string, err error, text string) {
	t.Helper()
	if !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v (hint %q), want mvm.ErrUnavailable with %q, one line and a hint", what, err, mvm.HintOf(err), text)
	}
}

// hold reads and never answers.
func hold(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func TestGuestThatNeverAnswers(t *testing.T) {
	addr := serve(t, hold)
	l := guest.Login{HostKey: pair(t).Public.Key, Signers: []ssh.Signer{pair(t).Signer}}
	_, err := guest.Dial(short(t, 50*time.Millisecond), dialer(addr), l)
	unavailable(t, "Dial", err, "did not answer within")
	_, err = guest.DialNet(short(t, 50*time.Millisecond), addr, l)
	unavailable(t, "DialNet", err, "did not answer within")
	_, _, err = guest.WaitReady(short(t, 50*time.Millisecond), dialer(addr), l)
	unavailable(t, "WaitReady", err, "did not answer within")
	unavailable(t, "WaitTCP", guest.WaitTCP(short(t, 50*time.Millisecond), addr), "did not answer within")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := guest.Dial(ctx, dialer(addr), l); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestWaitTCP(t *testing.T) {
	greet := func(s string) func(net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, s); hold(c) }
	}
	if err := guest.WaitTCP(short(t, time.Minute), serve(t, greet("SSH-2.0-x\r\n"))); err != nil {
		t.Error(err)
	}
	if err := guest.WaitTCP(short(t, time.Minute), serve(t, greet("220 mail\r\n"))); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" {
		t.Errorf("another server: %v", err)
	}
}

// liar is an SSH server that lets everybody in and then does what the test says.
type liar struct {
	request func(r *ssh.Request)
	session func(ch ssh.Channel, reqs <-chan *ssh.Request)
}

func (l liar) start(t *testing.T) *guest.Client {
	t.Helper()
	host := pair(t)
	cfg := &ssh.ServerConfig{NoClientAuth: true}
	cfg.AddHostKey(host.Signer)
	addr := serve(t, func(c net.Conn) {
		_, chans, reqs, err := ssh.NewServerConn(c, cfg)
		if err != nil {
			return
		}
		go func() {
			for r := range reqs {
				l.request(r)
			}
		}()
		for nc := range chans {
			if ch, reqs, err := nc.Accept(); err == nil {
				go l.session(ch, reqs)
			}
		}
	})
	c, err := guest.Dial(short(t, time.Minute), dialer(addr), guest.Login{HostKey: host.Public.Key, Signers: []ssh.Signer{pair(t).Signer}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestAgentThatLies(t *testing.T) {
	for _, tc := range []struct {
		name, reply string
		ok          bool
		kind        mvm.Kind
		text        string
	}{
		{"no JSON", "\x1b]0;x\a{", true, mvm.ErrBroken, "no answer"},
		{"other JSON", `[1]`, true, mvm.ErrBroken, "no answer"},
		{"refusal with escapes", "a\x1b[2Jb\nc", false, mvm.ErrUnavailable, "a [2Jb c"},
		{"endless reason", strings.Repeat("x", 100<<10), false, mvm.ErrUnavailable, "…"},
	} {
		c := liar{request: func(r *ssh.Request) { _ = r.Reply(tc.ok, []byte(tc.reply)) }}.start(t)
		_, err := c.Ready(short(t, time.Minute))
		if !errors.Is(err, tc.kind) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), tc.text) || strings.ContainsAny(err.Error(), "\x1b\a\n") || len(err.Error()) > 1000 {
			t.Errorf("%s: %.200q, want %v with %q, short and printable", tc.name, err, tc.kind, tc.text)
		}
	}
}

func TestAgentThatIsSilentAfterLogin(t *testing.T) {
	quiet := func() *guest.Client {
		return liar{request: func(*ssh.Request) {}, session: func(ssh.Channel, <-chan *ssh.Request) {}}.start(t)
	}
	for name, call := range map[string]func(context.Context, *guest.Client) error{
		"Ready":    func(ctx context.Context, c *guest.Client) error { _, err := c.Ready(ctx); return err },
		"Sync":     func(ctx context.Context, c *guest.Client) error { return c.Sync(ctx) },
		"PowerOff": func(ctx context.Context, c *guest.Client) error { return c.PowerOff(ctx) },
		"SetTime":  func(ctx context.Context, c *guest.Client) error { return c.SetTime(ctx, time.Now()) },
		"Tree": func(ctx context.Context, c *guest.Client) error {
			_, err := c.Tree(ctx, []string{"pack", "{}"}, nil, nil)
			return err
		},
		"SFTP": func(ctx context.Context, c *guest.Client) error { _, err := c.SFTP(ctx); return err },
		"Exec": func(ctx context.Context, c *guest.Client) error {
			_, err := c.Exec(ctx, guest.Cmd{Argv: []string{"true"}})
			return err
		},
	} {
		unavailable(t, name, call(short(t, 50*time.Millisecond), quiet()), "did not answer within")
	}
}

func TestCommandWithoutAnEnd(t *testing.T) {
	for name, end := range map[string]func(ch ssh.Channel){
		"no status":        func(ch ssh.Channel) { _ = ch.Close() },
		"truncated status": func(ch ssh.Channel) { _, _ = ch.SendRequest("exit-status", false, []byte{0}); _ = ch.Close() },
	} {
		c := liar{session: func(ch ssh.Channel, reqs <-chan *ssh.Request) {
			for r := range reqs {
				_ = r.Reply(true, nil)
				end(ch)
			}
		}}.start(t)
		st, err := c.Exec(short(t, time.Minute), guest.Cmd{Argv: []string{"true"}})
		unavailable(t, name, err, "before the command ended")
		if st.Code == 0 {
			t.Errorf("%s: status 0", name)
		}
	}
	c := liar{session: func(ch ssh.Channel, reqs <-chan *ssh.Request) {
		for r := range reqs {
			_ = r.Reply(true, nil)
			_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
				Name string
				Core bool
				A, B string
			}{"X\x1b[31m", false, "", ""}))
			_ = ch.Close()
		}
	}}.start(t)
	st, err := c.Exec(short(t, time.Minute), guest.Cmd{Argv: []string{"true"}})
	if err != nil || st != (guest.Status{Code: 255, Signal: "X [31m"}) {
		t.Errorf("%+v %v", st, err)
	}
}

func TestBadCommands(t *testing.T) {
	c := liar{}.start(t)
	if _, err := c.Exec(short(t, time.Minute), guest.Cmd{Env: []string{"=x"}}); !errors.Is(err, mvm.ErrInvalid) {
		t.Error(err)
	}
	big := guest.Cmd{Argv: []string{strings.Repeat("x", wire.MaxRequest)}}
	c = liar{session: func(_ ssh.Channel, reqs <-chan *ssh.Request) { ssh.DiscardRequests(reqs) }}.start(t)
	if _, err := c.Exec(short(t, time.Minute), big); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
		t.Error(err)
	}
}

func TestQuoteShell(t *testing.T) {
	words := []string{"plain", "", "a b", "it's", `$HOME "x" \`, "line\nbreak", "-n", "ü*?", "a=b"}
	out, err := (&run.Host{}).Run(context.Background(), run.Cmd{Name: "sh", Args: []string{"-c", `printf '%s\0' ` + guest.QuoteShell(words...)}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out.Stdout), strings.Join(words, "\x00")+"\x00"; got != want {
		t.Errorf("a shell reads %q, want %q", got, want)
	}
}

// TestOverPlainSSH runs the command lines that a plain SSH server gets in a shell.
func TestOverPlainSSH(t *testing.T) {
	host, user := pair(t), pair(t)
	cfg := &ssh.ServerConfig{NoClientAuth: true}
	cfg.AddHostKey(host.Signer)
	addr := serve(t, func(c net.Conn) {
		_, chans, reqs, err := ssh.NewServerConn(c, cfg)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(reqs)
		for nc := range chans {
			ch, reqs, err := nc.Accept()
			if err != nil {
				return
			}
			go shellServer(ch, reqs)
		}
	})
	c, err := guest.DialNet(short(t, time.Minute), addr, guest.Login{HostKey: host.Public.Key, Signers: []ssh.Signer{user.Signer}, User: "me"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var out bytes.Buffer
	st, err := c.Exec(short(t, time.Minute), guest.Cmd{Argv: []string{"sh", "-c", `pwd; echo "$A"; exit 4`}, Env: []string{"A=it's $x"}, Dir: "/", Stdout: &out})
	if err != nil || st.Code != 4 || out.String() != "/\nit's $x\n" {
		t.Errorf("%+v %v %q", st, err, out.String())
	}
	if _, err := c.Exec(short(t, time.Minute), guest.Cmd{Argv: []string{"id"}, User: "other"}); !errors.Is(err, mvm.ErrUnsupported) {
		t.Error(err)
	}
	if _, err := c.Ready(short(t, time.Minute)); !errors.Is(err, mvm.ErrUnsupported) {
		t.Error(err)
	}
}

// shellServer runs "exec" requests with sh, as sshd does.
func shellServer(ch ssh.Channel, reqs <-chan *ssh.Request) {
	for r := range reqs {
		var m struct{ Line string }
		ok := r.Type == "exec" && ssh.Unmarshal(r.Payload, &m) == nil
		_ = r.Reply(ok, nil)
		if !ok {
			continue
		}
		code := 0
		_, err := (&run.Host{}).Run(context.Background(), run.Cmd{Name: "sh", Args: []string{"-c", m.Line}, Stdout: ch})
		var exit *run.ExitError
		if errors.As(err, &exit) {
			code = exit.Code
		}
		_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(code)}))
		_ = ch.Close()
	}
}
