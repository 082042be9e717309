// Package agent is the program inside a guest that answers the host: an SSH
// server on vsock or on a virtio-serial port, with the only key that may log in
// made per VM. It runs commands, serves files, forwards to the guest's own
// ports and asks the init to power off. It knows nothing of the host: not its
// address, not its paths, and it opens no connection to it.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// memoryLimit keeps the agent small in a guest of 128 MiB: the collector works
// harder above it.
const memoryLimit = 64 << 20

// retry is the pause before a listener that failed is made again.
const retry = time.Second

// ReadParams reads the agent's configuration.
func ReadParams(r io.Reader) (guest.AgentParams, error) {
	var p guest.AgentParams
	data, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		return p, fmt.Errorf("read the agent's configuration: %w", err)
	}
	return p, nil
}

// Serve runs the agent until ctx ends. It returns an error at once when the
// parameters cannot work, and otherwise keeps making its listener anew.
func Serve(ctx context.Context, p guest.AgentParams) error {
	s, err := NewServer(p)
	if err != nil {
		return err
	}
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(50)
	for ctx.Err() == nil {
		err := s.listen(ctx)
		if ctx.Err() != nil {
			break
		}
		s.logf("listener on %s ended, starting again: %v", p.Transport, err)
		pause(ctx, retry)
	}
	s.hangup()
	return nil
}

// Main is the agent's process: configuration from r, which it closes, until SIGTERM. A SIGHUP of
// the init's shutdown is ignored, since a power-off may still be under way.
func Main(r io.ReadCloser) error {
	p, err := ReadParams(r)
	// Closed before any command runs: the descriptor holds the agent's key, and
	// would be inherited.
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// Commands get their own score back (see start); the agent should be the last to go.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0o644)
	return Serve(ctx, p)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// listen accepts connections until the transport fails.
func (s *Server) listen(ctx context.Context) error {
	switch s.params.Transport {
	case "vsock":
		return s.listenVsock(ctx)
	case "virtio-serial":
		return s.listenSerial(ctx)
	}
	return fmt.Errorf("unknown transport %q", s.params.Transport)
}

// ServeListener serves the connections of l until it fails or ctx ends.
func (s *Server) ServeListener(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return errors.Join(err, l.Close())
		}
		go s.ServeConn(ctx, c)
	}
}

// serverConfig accepts one key, whatever the user's name: the name says as whom
// to run.
func serverConfig(p guest.AgentParams) (*ssh.ServerConfig, error) {
	host, err := ssh.ParsePrivateKey([]byte(p.HostKey))
	if err != nil {
		return nil, fmt.Errorf("the agent's host key: %w", err)
	}
	allowed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(p.AuthorizedKey))
	if err != nil {
		return nil, fmt.Errorf("the agent's authorised key: %w", err)
	}
	want := string(allowed.Marshal())
	cfg := &ssh.ServerConfig{
		MaxAuthTries:  3,
		ServerVersion: wire.ServerVersion(p.Version),
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if string(key.Marshal()) != want {
				return nil, errors.New("this key may not log in")
			}
			return &ssh.Permissions{}, nil
		},
	}
	cfg.AddHostKey(host)
	return cfg, nil
}
