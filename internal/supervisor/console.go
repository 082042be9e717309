package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/fsx"
)

// Names of the FIFOs in a VM's directory: the VMM reads the one and writes the
// other.
const (
	consoleIn  = "console.in"
	consoleOut = "console.out"
)

// Bounds of what a guest can make us keep.
const (
	ringSize    = 64 << 10 // what a new viewer is shown
	maxLog      = 1 << 20  // then the log is renamed to .1, in place of an older one
	viewerQueue = 64       // chunks that a slow viewer may be behind before it loses some
)

// console relays a VM's serial console: from the VMM to the log, a ring in
// memory and all viewers; from any viewer to the VMM.
type console struct {
	spec    Spec
	in, out *os.File // our ends of the FIFOs
	done    chan struct{}

	mu      sync.Mutex
	ring    []byte
	log     *os.File
	logSize int64
	viewers map[chan []byte]struct{} // nil after the end

	listener net.Listener // nil while nobody can attach
}

func newConsole(s Spec) (*console, error) {
	c := &console{spec: s, done: make(chan struct{}), viewers: map[chan []byte]struct{}{}}
	for _, name := range []string{consoleIn, consoleOut} {
		path := filepath.Join(s.Dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
	}
	var err error
	if c.in, err = openFIFO(filepath.Join(s.Dir, consoleIn)); err != nil {
		return nil, err
	}
	if c.out, err = openFIFO(filepath.Join(s.Dir, consoleOut)); err != nil {
		return nil, err
	}
	// Room for a burst while we are not scheduled; the default of 64 KiB will do
	// where it may not be changed.
	_, _ = unix.FcntlInt(c.out.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	if err := c.openLog(); err != nil {
		return nil, fmt.Errorf("open the console's log: %w", err)
	}
	return c, nil
}

func (c *console) openLog() error {
	f, err := os.OpenFile(c.spec.Console, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	c.log, c.logSize = f, fi.Size()
	return nil
}

// relay reads what the guest prints until the console is drained.
func (c *console) relay() {
	defer close(c.done)
	buf := make([]byte, 4096)
	for {
		n, err := c.out.Read(buf)
		if n > 0 {
			_, _ = c.Write(buf[:n]) // never fails
		}
		if err != nil {
			return
		}
	}
}

// drain has relay read what is left, and ends it.
func (c *console) drain() {
	_ = c.out.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disconnect()
	c.viewers = nil
	_ = c.log.Close()
}

// Write takes what the guest printed. A log that cannot be written (a full
// disk) loses it; the guest is never held up.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.logSize+int64(len(p)) > maxLog {
		_ = c.log.Close()
		_ = os.Rename(c.spec.Console, c.spec.Console+".1")
		if c.openLog() != nil {
			c.logSize = 0
		}
	}
	n, _ := c.log.Write(p)
	c.logSize += int64(n)
	c.ring = append(c.ring, p...)
	if over := len(c.ring) - ringSize; over > 0 {
		c.ring = append(c.ring[:0], c.ring[over:]...)
	}
	chunk := append([]byte(nil), p...)
	for v := range c.viewers {
		select {
		case v <- chunk:
		default: // it reads too slowly
		}
	}
	return len(p), nil
}

// serve lets viewers attach, until the end of the process or unserve. Where they
// can already, it does nothing.
func (c *console) serve() {
	c.mu.Lock()
	if c.listener != nil || c.viewers == nil {
		c.mu.Unlock()
		return
	}
	l, err := fsx.ListenUnix(c.spec.ConsoleSocket)
	if err != nil {
		c.mu.Unlock()
		return // a console without viewers; the log goes on
	}
	c.listener = l
	c.mu.Unlock()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go c.view(conn)
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
	_ = os.Remove(c.spec.ConsoleSocket)
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
	if c.viewers == nil || c.listener == nil {
		c.mu.Unlock()
		return
	}
	replay := append([]byte(nil), c.ring...)
	c.viewers[queue] = struct{}{}
	c.mu.Unlock()
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
	if _, err := conn.Write(replay); err != nil {
		c.leave(queue)
		return
	}
	for chunk := range queue {
		if _, err := conn.Write(chunk); err != nil {
			c.leave(queue)
			return
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
