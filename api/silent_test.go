package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/vmm"
)

// silentGuest is an agent that stops answering at some point. Its connections exist
// in memory, so that the real limits of commands pass in no time in a bubble of
// testing/synctest.
type silentGuest struct {
	login    bool                 // it lets in who logs in
	ready    bool                 // and answers requests
	alive    func() bool          // and, as long as it says so, keep-alives
	sessions bool                 // and starts commands,
	runs     func(ch ssh.Channel) // which do this
	started  func(e wire.Exec)    // told of each
	world    *world
}

func (g *silentGuest) serve(m *Client) {
	g.world.driver.Guest = func(_ context.Context, h vmm.Handle, _ uint32) (net.Conn, error) {
		id, err := m.core.loadIdentity(h.ID)
		if err != nil {
			return nil, err
		}
		ours, theirs := memoryPipe()
		go g.conn(theirs, id.AgentKey)
		return ours, nil
	}
}

func (g *silentGuest) conn(c net.Conn, hostKey string) {
	if !g.login {
		_, _ = io.Copy(io.Discard, c)
		return
	}
	signer, err := ssh.ParsePrivateKey([]byte(hostKey))
	if err != nil {
		return
	}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(signer)
	_, chans, reqs, err := ssh.NewServerConn(c, cfg)
	if err != nil {
		return
	}
	go func() {
		for r := range reqs {
			switch {
			case strings.HasPrefix(r.Type, "keepalive"):
				if g.alive == nil || g.alive() {
					_ = r.Reply(false, nil)
				}
			case g.ready:
				_ = r.Reply(true, []byte(`{"init_state":"running"}`))
			}
		}
	}()
	for nc := range chans {
		if g.sessions {
			go g.session(nc)
		}
	}
}

func (g *silentGuest) session(nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	for r := range reqs {
		_ = r.Reply(true, nil)
		if g.runs != nil && (r.Type == wire.ReqExec || r.Type == "exec") {
			go g.runs(ch)
		}
	}
}

// exits ends a command.
func exits(ch ssh.Channel, code uint32) {
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{code}))
	_ = ch.Close()
}

// memoryPipe is a connection with room for what is not read yet: both sides of SSH
// begin by writing.
func memoryPipe() (a, b net.Conn) {
	one, two := newHalf(), newHalf()
	return &memoryConn{r: one, w: two}, &memoryConn{r: two, w: one}
}

type half struct {
	mu     sync.Mutex
	more   *sync.Cond
	data   bytes.Buffer
	closed bool
}

func newHalf() *half {
	h := &half{}
	h.more = sync.NewCond(&h.mu)
	return h
}

type memoryConn struct {
	net.Conn // deadlines and addresses: not used
	r, w     *half
}

func (c *memoryConn) Read(p []byte) (int, error) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	for c.r.data.Len() == 0 && !c.r.closed {
		c.r.more.Wait()
	}
	return c.r.data.Read(p)
}

func (c *memoryConn) Write(p []byte) (int, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if c.w.closed {
		return 0, net.ErrClosed
	}
	c.w.more.Broadcast()
	return c.w.data.Write(p)
}

func (c *memoryConn) Close() error {
	for _, h := range []*half{c.r, c.w} {
		h.mu.Lock()
		h.closed = true
		h.more.Broadcast()
		h.mu.Unlock()
	}
	return nil
}

func (c *memoryConn) RemoteAddr() net.Addr { return &net.UnixAddr{} }
func (c *memoryConn) LocalAddr() net.Addr  { return &net.UnixAddr{} }

// inBubble runs fn with a client of its own on the world, whose time passes when
// everybody waits; it begins long after the VMs have booted.
func (w *world) inBubble(name string, fn func(t *testing.T, m *Client, g *silentGuest)) {
	w.t.Run(name, func(t *testing.T) {
		real := time.Now()
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(real.Add(time.Hour)))
			sub := *w
			sub.t = t
			m := sub.open()
			g := &silentGuest{world: &sub}
			g.serve(m)
			fn(t, m, g)
		})
	})
}

// silentVM is a world with a VM named web.
func silentVM(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	return w
}

// theVM is the row of web.
func theVM(t *testing.T, m *Client) *mvm.VMInstanceItem {
	t.Helper()
	st, err := m.core.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vm, err := m.core.findVM(t.Context(), st, "web")
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// A command that is silent for hours is not cut off: its agent answers.
func TestSilentCommand(t *testing.T) {
	w := silentVM(t)
	quiet := func(ch ssh.Channel) {
		time.Sleep(7 * time.Hour)
		exits(ch, 3)
	}
	w.inBubble("long", func(t *testing.T, m *Client, g *silentGuest) {
		g.login, g.ready, g.sessions, g.runs = true, true, true, quiet
		code, err := m.Exec.Run(t.Context(), ExecInput{Identifier: "web", Cmd: []string{"make"}})
		if code != 3 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
	})
	w.inBubble("paused", func(t *testing.T, m *Client, g *silentGuest) {
		began := time.Now()
		g.login, g.ready, g.sessions, g.runs = true, true, true, quiet
		g.alive = func() bool { // stands still for two hours in between
			time.Sleep(time.Until(began.Add(2 * time.Hour)))
			return true
		}
		vm := theVM(t, m)
		running := *vm
		vm.Status = mvm.StatusPaused
		go func() { // paused when the command runs already
			time.Sleep(time.Minute)
			if err := m.core.st.UpdateVM(t.Context(), vm); err != nil {
				t.Error(err)
			}
			time.Sleep(3 * time.Hour)
			if err := m.core.st.UpdateVM(t.Context(), &running); err != nil {
				t.Error(err)
			}
		}()
		code, err := m.Exec.Run(t.Context(), ExecInput{Identifier: "web", Cmd: []string{"make"}})
		if code != 3 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
	})
}

// Each command that talks to a guest has a limit where that stops answering, and says so.
func TestSilentGuest(t *testing.T) {
	w := silentVM(t)
	note := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(note, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	commands := map[string]func(ctx context.Context, m *Client) error{
		"exec": func(ctx context.Context, m *Client) error {
			_, err := m.Exec.Run(ctx, ExecInput{Identifier: "web", Cmd: []string{"true"}})
			return err
		},
		"cp in": func(ctx context.Context, m *Client) error {
			_, err := m.CP.Copy(ctx, CPInput{Sources: []string{note}, Dst: "web:/root/"})
			return err
		},
		"cp out": func(ctx context.Context, m *Client) error {
			_, err := m.CP.Copy(ctx, CPInput{Sources: []string{"web:/etc/passwd"}, Dst: filepath.Dir(note)})
			return err
		},
		"connect": func(ctx context.Context, m *Client) error {
			r, w := io.Pipe() // whoever types says nothing
			defer func() { _ = w.Close() }()
			return m.SSH.Proxy(ctx, SSHProxyInput{Identifier: "web", IO: StreamIO{Stdin: r}})
		},
	}
	for at, g := range map[string]silentGuest{
		"at the login":  {},
		"at a request":  {login: true},
		"at a session":  {login: true, ready: true},
		"while it runs": {login: true, ready: true, sessions: true, alive: func() bool { return false }},
	} {
		for name, run := range commands {
			if name == "connect" && g.login && g.alive == nil {
				continue // nothing was asked that it should answer
			}
			w.inBubble(name+" of a guest that is silent "+at, func(t *testing.T, m *Client, s *silentGuest) {
				s.login, s.ready, s.sessions, s.alive = g.login, g.ready, g.sessions, g.alive
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				err := run(ctx, m)
				refused(t, err, mvm.ErrUnavailable, "web")
				if ctx.Err() != nil {
					t.Errorf("it had no limit of its own: %v", err)
				}
			})
		}
	}
}

// A network does not tell that the machine at its other end is gone.
func TestSessionOverANetworkEndsWithItsVM(t *testing.T) {
	w := silentVM(t)
	m := w.open()
	vm := theVM(t, m)
	id, err1 := m.core.loadIdentity(vm.ID)
	login, err2 := m.core.agentLogin(vm)
	l, err3 := net.Listen("tcp", "127.0.0.1:0")
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		if c, err := l.Accept(); err == nil {
			(&silentGuest{login: true}).conn(c, id.AgentKey)
		}
	}()
	client, err := guest.DialNet(t.Context(), l.Addr().String(), login)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx, stop := m.core.whileItAnswers(t.Context(), vm, client)
	defer stop()
	w.driver.End(vm.ID, vmm.Exit{Reason: "guest powered off"})
	<-ctx.Done()
	refused(t, causeOf(ctx, ctx.Err()), mvm.ErrUnavailable, "the VM ended meanwhile")
}

// A guest that has not answered yet is not waited for when its VMM has ended.
func TestLoginEndsWithTheVM(t *testing.T) {
	w := silentVM(t)
	m := w.open()
	(&silentGuest{world: w}).serve(m)
	dial, dialled := w.driver.Guest, make(chan struct{}, 1)
	w.driver.Guest = func(ctx context.Context, h vmm.Handle, port uint32) (net.Conn, error) {
		select {
		case dialled <- struct{}{}:
		default:
		}
		return dial(ctx, h, port)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := m.Exec.Run(t.Context(), ExecInput{Identifier: "web", Cmd: []string{"true"}})
		ended <- err
	}()
	<-dialled
	vm := theVM(t, m)
	w.driver.End(vm.ID, vmm.Exit{Reason: "guest powered off"})
	refused(t, <-ended, mvm.ErrUnavailable, "the VMM ended before the guest was reached: guest powered off")
}
