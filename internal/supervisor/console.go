package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mvmctl/mvm/internal/fsx"
)

// Bounds of what a guest, or a viewer, can make us keep.
const (
	ringSize    = 64 << 10 // what a new viewer is shown
	viewerQueue = 64       // chunks that a slow viewer may be behind before it loses some
	maxViewers  = 32
)

// viewerLimit is how long viewers have to take the last words of a VM.
const viewerLimit = 200 * time.Millisecond

// console relays a VM's serial console: from the VMM to the log, a ring in
// memory and all viewers; from any viewer to the VMM.
type console struct {
	socket  string
	in      *os.File // our end of the FIFO
	out     *source
	viewing sync.WaitGroup

	mu      sync.Mutex
	ring    []byte // the last ringSize bytes are shown
	log     boundedLog
	viewers map[chan []byte]struct{} // nil after the end

	listener net.Listener // nil while nobody can attach
}

func newConsole(s Spec) (*console, error) {
	c := &console{socket: s.ConsoleSocket, log: boundedLog{path: s.Console}, viewers: map[chan []byte]struct{}{}}
	var err error
	if c.in, err = openFIFO(filepath.Join(s.Dir, consoleIn)); err != nil {
		return nil, err
	}
	if c.out, err = openSource(filepath.Join(s.Dir, consoleOut), c.take); err != nil {
		return nil, err
	}
	if err := c.log.open(); err != nil {
		return nil, fmt.Errorf("open the console's log: %w", err)
	}
	return c, nil
}

// finish takes what the VMM has left, and says to viewers that it was all.
func (c *console) finish() {
	c.out.finish()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disconnect()
	c.viewers = nil
	c.log.close()
}

// waitViewers gives viewers the time to take what is in their queues.
func (c *console) waitViewers() {
	gone := make(chan struct{})
	go func() {
		c.viewing.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(viewerLimit):
	}
}

// take takes what the guest printed, and is never held up.
func (c *console) take(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log.write(p)
	c.ring = append(c.ring, p...)
	if len(c.ring) > 2*ringSize { // not for each chunk, which may be a single byte
		c.ring = append(c.ring[:0], c.ring[len(c.ring)-ringSize:]...)
	}
	if len(c.viewers) == 0 {
		return
	}
	chunk := append([]byte(nil), p...)
	for v := range c.viewers {
		select {
		case v <- chunk:
		default: // it reads too slowly
		}
	}
}

// serve lets viewers attach, until the end of the process or unserve. Where they
// can already, it does nothing.
func (c *console) serve() {
	c.mu.Lock()
	if c.listener != nil || c.viewers == nil {
		c.mu.Unlock()
		return
	}
	l, err := fsx.ListenUnix(c.socket)
	if err != nil {
		c.mu.Unlock()
		return // a console without viewers; the log goes on
	}
	c.listener = l
	c.mu.Unlock()
	go acceptAll(l, func(conn net.Conn) { go c.view(conn) })
}

// acceptPause is the pause after a connection that could not be accepted.
const acceptPause = 100 * time.Millisecond

// acceptAll accepts connections until the listener is closed. Other errors, too
// many open files say, pass.
func acceptAll(l net.Listener, each func(net.Conn)) {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			each(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			time.Sleep(acceptPause)
		}
	}
}

// unserve disconnects all viewers and lets none attach. The log goes on.
func (c *console) unserve() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listener == nil {
		return
	}
	_ = c.listener.Close()
	_ = os.Remove(c.socket)
	c.listener = nil
	c.disconnect()
}

// disconnect ends all viewers. The caller holds mu.
func (c *console) disconnect() {
	for v := range c.viewers {
		delete(c.viewers, v)
		close(v)
	}
}

func (c *console) view(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	queue := make(chan []byte, viewerQueue)
	c.mu.Lock()
	if c.viewers == nil || c.listener == nil || len(c.viewers) >= maxViewers {
		c.mu.Unlock()
		return
	}
	replay := append([]byte(nil), c.ring[max(0, len(c.ring)-ringSize):]...)
	c.viewers[queue] = struct{}{}
	c.viewing.Add(1)
	c.mu.Unlock()
	defer c.viewing.Done()
	go func() {
		buf := make([]byte, 512)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				_ = c.in.SetWriteDeadline(time.Now().Add(time.Second))
				_, _ = c.in.Write(buf[:n]) // a guest that reads nothing loses it
			}
			if err != nil {
				c.leave(queue)
				return
			}
		}
	}()
	// One that does not read any more may have written before: it leaves when that
	// is with the guest.
	_, err := conn.Write(replay)
	for chunk := range queue {
		if err == nil {
			_, err = conn.Write(chunk)
		}
	}
}

// leave removes a viewer; its queue is closed once.
func (c *console) leave(queue chan []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, there := c.viewers[queue]; there {
		delete(c.viewers, queue)
		close(queue)
	}
}
