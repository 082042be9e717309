package agent

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mvmctl/mvm/internal/guest/wire"
)

// Bounds for streams of data that no command has taken yet.
const (
	maxWaiting = 64
	dataWait   = 30 * time.Second
)

// dataStreams are the streams that wait for their commands, by ticket.
type dataStreams struct {
	mu      sync.Mutex
	waiting map[string]net.Conn
}

// serveData takes a stream that the host opened for the data of a command. Nothing
// comes of it unless a command that was asked for over SSH, by who has the VM's key,
// names the same ticket.
func (s *Server) serveData(c net.Conn) {
	defer s.guard("data stream")
	_ = c.SetDeadline(time.Now().Add(dataWait))
	ticket, err := wire.ReadTicket(c)
	if err != nil || !s.data.put(ticket, c) {
		_ = c.Close()
		return
	}
	time.AfterFunc(dataWait, func() {
		if c := s.data.take(ticket); c != nil {
			_ = c.Close()
		}
	})
	_, _ = io.WriteString(c, wire.DataOK)
}

// put keeps a stream until its command takes it.
func (d *dataStreams) put(ticket string, c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waiting) >= maxWaiting || d.waiting[ticket] != nil {
		return false
	}
	if d.waiting == nil {
		d.waiting = map[string]net.Conn{}
	}
	d.waiting[ticket] = c
	return true
}

// take returns the stream with a ticket, once, or nil.
func (d *dataStreams) take(ticket string) net.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.waiting[ticket]
	delete(d.waiting, ticket)
	if c != nil {
		_ = c.SetDeadline(time.Time{})
	}
	return c
}

// ServeDataListener takes streams of data from l until it fails or ctx ends.
func (s *Server) ServeDataListener(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			_ = l.Close()
			return
		}
		go s.serveData(c)
	}
}
