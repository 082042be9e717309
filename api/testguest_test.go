package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/vmm"
)

// testGuest answers as the agents of all guests of a world do, but runs nothing:
// what it is asked goes to the functions of a test.
type testGuest struct {
	ready func() bool                                // nil: always
	port  func(port int) bool                        // whether something listens; nil: nothing does
	exec  func(e wire.Exec, stdio io.ReadWriter) int // nil: every command fails to start

	heeds func(*guest.NewIdentity) bool // changes what a guest is made, or says that it stays who it was; nil: it becomes that

	mu   sync.Mutex
	asks []string                     // the requests, in order
	ids  map[string]guest.NewIdentity // by the VM that they were given to
}

// is returns who the guest in a VM is: who it was made to be, or the VM's own.
func (g *testGuest) is(m *Client, vmID string) (vmIdentity, string, error) {
	g.mu.Lock()
	next, ok := g.ids[vmID]
	g.mu.Unlock()
	if ok {
		return vmIdentity{AgentKey: next.Config.Agent.HostKey}, next.Config.Hostname, nil
	}
	vm, err := m.core.st.GetVM(context.Background(), vmID)
	if err != nil {
		return vmIdentity{}, "", err
	}
	if from := vm.Options.RestoredFrom; from != "" { // its memory is still the other's
		s, err := m.core.st.GetSnapshot(context.Background(), from)
		if err != nil {
			return vmIdentity{}, "", err
		}
		id, err := readIdentity(m.core.paths.abs(s.Path))
		return id, s.VMName, err
	}
	id, err := m.core.loadIdentity(vmID)
	return id, vm.Name, err
}

// serve makes g the agent in every guest of the world.
func (g *testGuest) serve(w *world, m *Client) {
	w.driver.Guest = func(_ context.Context, h vmm.Handle, _ uint32) (net.Conn, error) {
		if g.ready != nil && !g.ready() {
			return nil, mvm.Errorf(mvm.ErrUnavailable, "it boots").WithHint("wait")
		}
		id, name, err := g.is(m, h.ID)
		if err != nil {
			return nil, err
		}
		l, err := net.Listen("tcp", "127.0.0.1:0") // net.Pipe has no buffer: both sides begin by writing
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		ours, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		theirs, err := l.Accept()
		if err != nil {
			return nil, errors.Join(err, ours.Close())
		}
		go g.conn(theirs, h.ID, name, id.AgentKey, func() { w.driver.End(h.ID, vmm.Exit{Reason: "guest powered off"}) })
		return ours, nil
	}
}

func (g *testGuest) conn(c net.Conn, vmID, name, hostKey string, off func()) {
	signer, err := ssh.ParsePrivateKey([]byte(hostKey))
	if err != nil {
		return
	}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(signer)
	s, chans, reqs, err := ssh.NewServerConn(c, cfg)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	go func() {
		for nc := range chans {
			go g.channel(nc)
		}
	}()
	for r := range reqs {
		g.mu.Lock()
		g.asks = append(g.asks, r.Type)
		g.mu.Unlock()
		if r.Type == wire.ReqIdentity {
			g.become(vmID, r.Payload)
		}
		reply, _ := json.Marshal(wire.Ready{State: "running", Hostname: name})
		_ = r.Reply(true, reply)
		if r.Type == wire.ReqPowerOff {
			off()
		}
	}
}

func (g *testGuest) become(vmID string, data []byte) {
	var next guest.NewIdentity
	if json.Unmarshal(data, &next) != nil {
		return
	}
	if g.heeds != nil && !g.heeds(&next) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ids == nil {
		g.ids = map[string]guest.NewIdentity{}
	}
	g.ids[vmID] = next
}

func (g *testGuest) channel(nc ssh.NewChannel) {
	if nc.ChannelType() == "direct-tcpip" {
		var d struct {
			Host       string
			Port       uint32
			Origin     string
			OriginPort uint32
		}
		if ssh.Unmarshal(nc.ExtraData(), &d) != nil || g.port == nil || !g.port(int(d.Port)) {
			_ = nc.Reject(ssh.ConnectionFailed, "connection refused")
			return
		}
		if ch, reqs, err := nc.Accept(); err == nil {
			ssh.DiscardRequests(reqs)
			_ = ch.Close()
		}
		return
	}
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	for r := range reqs {
		var e wire.Exec
		ok := r.Type == "pty-req" || r.Type == wire.ReqExec && g.exec != nil && json.Unmarshal(r.Payload, &e) == nil
		_ = r.Reply(ok, nil)
		if ok && r.Type == wire.ReqExec {
			go func() {
				code := g.exec(e, ch)
				_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(code)})) //nolint:gosec // small
				_ = ch.Close()
			}()
		}
	}
}
