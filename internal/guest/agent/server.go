package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// Limits on what the host side, or a bug in it, can make the agent hold.
const (
	maxConns        = 512
	maxSessions     = 1024            // of all connections
	handshakeLimit  = 3 * time.Minute // longer than guest.LoginLimit: a hundred logins at once take their time
	maxEnv          = 1024
	maxEnvBytes     = 128 << 10
	drainAfterExit  = 250 * time.Millisecond
	portDialTimeout = 10 * time.Second
)

// Server is an agent that was configured.
type Server struct {
	params   guest.AgentParams
	config   atomic.Pointer[ssh.ServerConfig] // another one after a restore
	conns    chan struct{}
	sessions chan struct{}
	data     dataStreams
	frames   atomic.Pointer[framer] // of the session on a serial port, nil if there is none

	mu      sync.Mutex
	running map[*process]struct{}
}

// NewServer checks the parameters.
func NewServer(p guest.AgentParams) (*Server, error) {
	cfg, err := serverConfig(p)
	if err != nil {
		return nil, err
	}
	s := &Server{
		params: p, running: map[*process]struct{}{},
		conns: make(chan struct{}, maxConns), sessions: make(chan struct{}, maxSessions),
	}
	s.config.Store(cfg)
	return s, nil
}

// logf writes one line; standard error is the kernel's log.
func (s *Server) logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "mvm-agent: "+format+"\n", args...)
}

// guard keeps a bug in one connection from ending the agent: nothing would
// start it again before the next boot.
func (s *Server) guard(what string) {
	if r := recover(); r != nil {
		s.logf("%s failed: %v; %.400s", what, r, debug.Stack())
	}
}

// ServeConn serves one connection to its end and closes it.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) {
	defer s.guard("connection")
	defer func() { _ = c.Close() }()
	select {
	case s.conns <- struct{}{}:
		defer func() { <-s.conns }()
	default:
		return
	}
	limit := time.AfterFunc(handshakeLimit, func() { _ = c.Close() })
	sc, chans, reqs, err := ssh.NewServerConn(c, s.config.Load())
	limit.Stop()
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = sc.Close() })
	defer stop()
	var open sync.WaitGroup
	open.Add(1)
	go func() {
		defer open.Done()
		defer s.guard("request")
		s.globalRequests(reqs)
	}()
	for nc := range chans {
		open.Add(1)
		go func() {
			defer open.Done()
			defer s.guard("channel " + nc.ChannelType())
			s.channel(ctx, sc, nc)
		}()
	}
	open.Wait()
}

func (s *Server) channel(ctx context.Context, sc *ssh.ServerConn, nc ssh.NewChannel) {
	switch nc.ChannelType() {
	case "session":
		select {
		case s.sessions <- struct{}{}:
			defer func() { <-s.sessions }()
		default:
			_ = nc.Reject(ssh.ResourceShortage, fmt.Sprintf("the agent runs %d sessions already", maxSessions))
			return
		}
		ch, reqs, err := nc.Accept()
		if err != nil {
			return
		}
		(&session{srv: s, user: sc.User(), ch: ch}).serve(reqs)
	case "direct-tcpip":
		s.forward(ctx, nc)
	default:
		_ = nc.Reject(ssh.UnknownChannelType, "the agent has sessions and direct-tcpip only")
	}
}

// globalRequests answers the requests in order.
func (s *Server) globalRequests(reqs <-chan *ssh.Request) {
	for r := range reqs {
		out, err := s.global(r)
		var reply []byte
		if err != nil {
			reply = []byte(err.Error())
		} else {
			reply, err = json.Marshal(out)
		}
		if r.WantReply {
			_ = r.Reply(err == nil, reply)
		}
	}
}

func (s *Server) global(r *ssh.Request) (any, error) {
	if len(r.Payload) > wire.MaxRequest {
		return nil, fmt.Errorf("the request is longer than %d bytes", wire.MaxRequest)
	}
	switch r.Type {
	case wire.ReqReady:
		return s.ready(), nil
	case wire.ReqSync:
		syncAll()
		return struct{}{}, nil
	case wire.ReqPowerOff:
		return struct{}{}, s.powerOff()
	case wire.ReqReboot:
		return struct{}{}, s.reboot()
	case wire.ReqSetTime:
		var t wire.SetTime
		if err := json.Unmarshal(r.Payload, &t); err != nil {
			return nil, err
		}
		return struct{}{}, setTime(t)
	case wire.ReqConsole:
		var size wire.ConsoleSize
		if err := json.Unmarshal(r.Payload, &size); err != nil {
			return nil, err
		}
		return struct{}{}, resizeConsole(size)
	case wire.ReqRenew:
		var n wire.Renew
		if err := json.Unmarshal(r.Payload, &n); err != nil {
			return nil, err
		}
		return struct{}{}, s.renew(n)
	case wire.ReqIdentity:
		var n guest.NewIdentity
		if err := json.Unmarshal(r.Payload, &n); err != nil {
			return nil, err
		}
		return struct{}{}, s.newIdentity(&n)
	case wire.ReqVolumeTake, wire.ReqVolumeRelease:
		return s.volume(r)
	}
	return nil, fmt.Errorf("the agent does not know the request %q", r.Type)
}

// hangup ends what runs in sessions: an init that stops waits for them.
func (s *Server) hangup() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.running {
		p.signal("HUP")
		p.signal("TERM")
	}
}

func (s *Server) track(p *process, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.running[p] = struct{}{}
	} else {
		delete(s.running, p)
	}
}
