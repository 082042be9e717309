package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/mvmctl/mvm/internal/guest/mux"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// A virtio-serial port is one byte stream without a beginning: after a restart
// of either side old bytes may still be in it. So each session starts with the
// host's line "\x00MVM-SYN <nonce>\n", answered by "\x00MVM-ACK <nonce>\n"; all
// before it is thrown away. The host repeats its SYN until it reads the ACK, and
// QEMU keeps what was sent before the guest had the port open, so more of the
// same may follow: they are skipped, one with another nonce (a new host process)
// is answered. A SYN in the middle of a session is no yamux frame (its second
// byte is no type), so it ends the session, and the next one is answered. In the
// middle of a frame, where a guest that is loaded from a snapshot may be, it would be
// the rest of that: the host sends noise first.
const (
	synPrefix = "\x00MVM-SYN "
	ackPrefix = "\x00MVM-ACK "
	nonceLen  = 16
)

// anew is the agent's first word. It is no yamux frame (its second byte is no
// type), so it ends a session that the host still has with the guest before its
// reset, of which the host sees nothing; within a handshake the host passes over
// it.
const anew = "\x00MVM-NEW guest\n"

// anewLimit bounds the writing of anew. While the host has the port closed a write
// waits, and there is no session that it would end.
const anewLimit = 200 * time.Millisecond

func (p *port) sayAnew() error {
	if err := p.f.SetWriteDeadline(time.Now().Add(anewLimit)); err != nil {
		return err
	}
	_, _ = io.WriteString(p, anew)
	return p.f.SetWriteDeadline(time.Time{})
}

// serveMux answers one session of the port after the other until the device
// fails or ctx ends.
func (s *Server) serveMux(ctx context.Context, p *port) error {
	if err := p.sayAnew(); err != nil {
		return err
	}
	for ctx.Err() == nil {
		first, err := handshake(p)
		if errors.Is(err, io.EOF) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.serveSession(ctx, p, first); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return ctx.Err()
}

// handshake answers SYN lines until something else comes, of which it has read
// the two bytes that it returns.
func handshake(rw io.ReadWriter) ([]byte, error) {
	acked := ""
	nonce, err := awaitSyn(rw)
	for err == nil {
		if nonce != acked { // a second ACK of the same would land in the host's yamux
			if _, err := io.WriteString(rw, ackPrefix+nonce+"\n"); err != nil {
				return nil, err
			}
			acked = nonce
		}
		var two [2]byte
		if _, err := io.ReadFull(rw, two[:]); err != nil {
			return nil, eof(err)
		}
		if string(two[:]) != synPrefix[:2] {
			return two[:], nil
		}
		nonce, err = awaitSyn(io.MultiReader(bytes.NewReader(two[:]), rw))
	}
	return nil, eof(err)
}

// eof makes one error of a stream that ends between or within lines.
func eof(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// awaitSyn reads up to the end of a SYN line, byte by byte: what follows it is
// yamux's.
func awaitSyn(r io.Reader) (string, error) {
	want := len(synPrefix) + nonceLen
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		switch {
		case b[0] == 0:
			line = append(line[:0], 0)
		case b[0] == '\n' && len(line) == want && strings.HasPrefix(string(line), synPrefix):
			if nonce := string(line[len(synPrefix):]); isHex(nonce) {
				return nonce, nil
			}
			line = line[:0]
		case len(line) == 0 || len(line) >= want:
			line = line[:0]
		default:
			line = append(line, b[0])
		}
	}
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// muxConn is the port for the time of one yamux session: closing it wakes the
// reader and leaves the device open.
type muxConn struct {
	io.Reader
	io.Writer
	f *os.File
}

func (m muxConn) Close() error { return m.f.SetDeadline(time.Now()) }

func (s *Server) serveSession(ctx context.Context, p *port, first []byte) error {
	if err := p.f.SetDeadline(time.Time{}); err != nil {
		return err
	}
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	cfg.EnableKeepAlive = false // a paused VM does not answer, and is not dead
	cfg.AcceptBacklog = maxConns
	cfg.ConnectionWriteTimeout = time.Minute
	frames := &framer{Writer: p}
	sess, err := yamux.Server(muxConn{io.MultiReader(bytes.NewReader(first), p), frames, p.f}, cfg)
	if err != nil {
		return err
	}
	s.frames.Store(frames)
	defer s.frames.Store(nil)
	stop := context.AfterFunc(ctx, func() { _ = sess.Close() })
	defer stop()
	for {
		c, err := sess.AcceptStream()
		if err != nil {
			break
		}
		go s.connect(ctx, c)
	}
	_ = sess.Close()
	return p.f.SetDeadline(time.Time{})
}

// connect answers the line "CONNECT <port>\n" that starts each stream.
func (s *Server) connect(ctx context.Context, c net.Conn) {
	defer s.guard("stream")
	_ = c.SetDeadline(time.Now().Add(handshakeLimit))
	port, err := mux.ReadConnect(c)
	data := port == wire.DataPort(s.params.Port)
	if err != nil || port != s.params.Port && !data {
		_, _ = fmt.Fprintf(c, "ERR nothing listens on port %d\n", port)
		_ = c.Close()
		return
	}
	if err := mux.WriteOK(c, port); err != nil {
		_ = c.Close()
		return
	}
	if data {
		s.serveData(c)
		return
	}
	_ = c.SetDeadline(time.Time{})
	s.ServeConn(ctx, c)
}
