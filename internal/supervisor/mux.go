package supervisor

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest/mux"
)

// Limits of the channel to the guest.
const (
	redial       = 100 * time.Millisecond // between tries to reach the VMM's socket
	connectLimit = 30 * time.Second       // for the guest to answer a CONNECT: more than callers wait
	maxStreams   = 256
)

// serveMux holds the one connection to the guest's serial port, for as long as
// the VMM lives, and opens a stream on it for each connection to socket. It calls
// used after each use.
func serveMux(ctx context.Context, device, socket string, used func()) {
	l, err := fsx.ListenUnix(socket)
	if err != nil {
		return // the guest cannot be reached; DialGuest says so
	}
	m := &muxer{used: used, slots: make(chan struct{}, maxStreams)}
	go m.accept(ctx, l)
	for ctx.Err() == nil {
		m.hold(ctx, device)
		select {
		case <-ctx.Done():
		case <-time.After(redial):
		}
	}
	_ = l.Close()
}

type muxer struct {
	used  func()
	slots chan struct{}

	mu      sync.Mutex
	session *mux.Session
}

// hold keeps one session until it ends.
func (m *muxer) hold(ctx context.Context, device string) {
	conn, err := fsx.DialUnix(ctx, device)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	s, err := mux.Host(ctx, conn)
	if err != nil {
		return
	}
	m.set(s)
	defer m.set(nil)
	select {
	case <-s.CloseChan():
	case <-ctx.Done():
	}
	_ = s.Close()
}

func (m *muxer) set(s *mux.Session) {
	m.mu.Lock()
	m.session = s
	m.mu.Unlock()
	m.used()
}

func (m *muxer) accept(ctx context.Context, l net.Listener) {
	acceptAll(l, func(conn net.Conn) {
		select {
		case m.slots <- struct{}{}:
			go func() {
				defer func() { <-m.slots }()
				m.serve(ctx, conn)
				m.used()
			}()
		default:
			_ = conn.Close()
		}
	})
}

// serve connects one caller with a port of the guest. A caller that cannot be
// connected sees its connection closed without an OK.
func (m *muxer) serve(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(connectLimit))
	port, err := mux.ReadConnect(conn)
	if err != nil {
		return
	}
	m.mu.Lock()
	s := m.session
	m.mu.Unlock()
	if s == nil {
		return
	}
	stream, err := s.OpenStream()
	if err != nil {
		return
	}
	defer func() { _ = stream.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()
	asked := time.Now()
	_ = stream.SetDeadline(asked.Add(connectLimit))
	if mux.WriteConnect(stream, port) != nil {
		return
	}
	if _, err := mux.ReadOK(stream); err != nil {
		// A guest that was reset answers nothing: begin anew with its handshake. One
		// that is busy says something on other streams, which must not suffer.
		if errors.Is(err, yamux.ErrTimeout) && s.Heard().Before(asked) {
			_ = s.Close()
		}
		return
	}
	_ = stream.SetDeadline(time.Time{})
	if mux.WriteOK(conn, port) != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	pipe(conn, stream, s)
}

// pipe copies both ways until both are done. The end of one direction is passed
// on; closing a yamux stream ends its writing side only. The end of the session is
// that of both directions, though a stream reads it as an ordinary end.
func pipe(conn, stream net.Conn, s *mux.Session) {
	done := make(chan struct{})
	go func() {
		_, _ = io.CopyBuffer(struct{ io.Writer }{stream}, struct{ io.Reader }{conn}, make([]byte, mux.MaxFrame))
		_ = stream.Close()
		close(done)
	}()
	_, err := io.Copy(conn, stream)
	if err != nil || s.IsClosed() {
		_ = conn.Close()
	} else if c, ok := conn.(*net.UnixConn); ok {
		_ = c.CloseWrite()
	}
	<-done
}
