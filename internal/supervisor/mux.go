package supervisor

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest/mux"
)

// Limits of the channel to the guest.
const (
	redial       = 100 * time.Millisecond // between tries to reach the VMM's socket
	connectLimit = 30 * time.Second       // for the guest to answer a CONNECT: more than callers wait
	silenceLimit = 4 * time.Second        // for a guest that says nothing at all
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
	m := &muxer{used: used, slots: make(chan struct{}, maxStreams), changed: make(chan struct{})}
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
	piped atomic.Int32 // callers who are connected, and have not gone

	mu      sync.Mutex
	session *mux.Session
	changed chan struct{} // closed with the next session
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
	close(m.changed)
	m.changed = make(chan struct{})
	m.mu.Unlock()
	m.used()
}

// now returns the session, nil if there is none.
func (m *muxer) now() *mux.Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session
}

// next waits for the session after last, until ctx ends: then it is nil.
func (m *muxer) next(ctx context.Context, last *mux.Session) *mux.Session {
	for ctx.Err() == nil {
		m.mu.Lock()
		s, changed := m.session, m.changed
		m.mu.Unlock()
		if s != nil && s != last {
			return s
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	return nil
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
	limit, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	_ = conn.SetDeadline(time.Now().Add(connectLimit))
	port, err := mux.ReadConnect(conn)
	if err != nil {
		return
	}
	s := m.now()
	var stream net.Conn
	for again := true; again; {
		if s == nil {
			return
		}
		if stream, again = m.reach(limit, s, port); again {
			s = m.next(limit, s)
		}
	}
	if stream == nil {
		return
	}
	defer func() { _ = stream.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()
	if mux.WriteOK(conn, port) != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	m.piped.Add(1)
	defer m.piped.Add(-1)
	pipe(conn, stream, s)
}

// reach opens a stream to a port of the guest. It is nil where the guest did not give
// one, and then again says that the session was ended for its silence: the guest may
// answer on the next one.
func (m *muxer) reach(ctx context.Context, s *mux.Session, port uint32) (stream net.Conn, again bool) {
	stream, err := s.OpenStream()
	if err != nil {
		return nil, false
	}
	deadline, _ := ctx.Deadline()
	_ = stream.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()
	// A guest that was reset, or whose agent was replaced, may answer nothing: begin
	// anew with its handshake, which costs nothing where nobody else uses the session.
	// One that is busy says something on other streams, which must not suffer, but
	// that end with the longer limit where it does not.
	asked := time.Now()
	silent := func() bool { return s.Heard().Before(asked) }
	var gaveUp atomic.Bool
	answered := make(chan struct{})
	defer close(answered)
	go func() {
		for t := time.NewTicker(silenceLimit); ; {
			select {
			case <-answered:
			case <-t.C:
				if silent() && m.piped.Load() > 0 {
					continue
				}
				if silent() {
					gaveUp.Store(true)
					_ = s.Close()
				}
			}
			t.Stop()
			return
		}
	}()
	if err = mux.WriteConnect(stream, port); err == nil {
		_, err = mux.ReadOK(stream)
	}
	if err == nil {
		_ = stream.SetDeadline(time.Time{})
		return stream, false
	}
	_ = stream.Close()
	if errors.Is(err, yamux.ErrTimeout) && silent() {
		_ = s.Close()
	}
	return nil, gaveUp.Load()
}

// pipe copies both ways until both are done. The end of one direction is passed
// on; closing a yamux stream ends its writing side only. The end of the session is
// that of both directions, though a stream reads it as an ordinary end.
func pipe(conn, stream net.Conn, s *mux.Session) {
	done := make(chan struct{})
	go func() {
		_, _ = io.CopyBuffer(struct{ io.Writer }{stream}, struct{ io.Reader }{conn}, make([]byte, mux.MaxFrame))
		if hungUp(conn) { // a guest that stands still would hold what nobody waits for
			_ = stream.SetReadDeadline(time.Now())
		}
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

// hungUp says whether the peer closed both directions.
func hungUp(conn net.Conn) bool {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	p := []unix.PollFd{{}}
	err = raw.Control(func(fd uintptr) {
		p[0].Fd = int32(fd) //nolint:gosec // a descriptor
		_, err = unix.Poll(p, 0)
	})
	return err == nil && p[0].Revents&unix.POLLHUP != 0
}
