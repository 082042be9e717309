// Package mux is the host's side of many streams over one byte stream, for VMMs
// whose channel to the guest is a serial port; the guest's side is in the agent. It
// knows neither VMs nor what the streams carry.
//
// A serial port has no connections: bytes of an earlier session, or of a guest
// that was reset, may be in flight. So each session begins with a handshake that
// cannot be mistaken. The host sends a line with a nonce, again and again; the
// guest discards everything until it sees such a line, and answers with the
// nonce; then yamux starts, the guest being its server. A side that reads within a
// session what is no frame of yamux, a handshake say, ends the session, and both
// begin anew. The host sees nothing of a guest's reset: only by such bytes does it
// learn of it at once.
//
// A guest that is loaded from a snapshot sees nothing of that either. It has a
// session with a host that is gone, cut off anywhere: in the middle of a frame it
// would take the handshake for the rest of that. So the host begins with as many
// bytes of noise as a frame can have, and keeps its frames short.
package mux

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	syn = "\x00MVM-SYN "
	ack = "\x00MVM-ACK "

	nonceLen = 16 // hex digits
	maxLine  = 64 // of a handshake; longer lines are noise

	// MaxFrame is the most that may be written to a stream at once: what is, is a
	// frame.
	MaxFrame = 16 << 10

	// window is how much a stream may have in flight.
	window = 256 << 10

	// synEvery is how often the host repeats itself until the guest listens.
	synEvery = 100 * time.Millisecond
)

// noise ends whatever frame a guest is in, and then its session: 0xff is no version
// of yamux, and nothing of a handshake.
var noise = bytes.Repeat([]byte{0xff}, MaxFrame)

// config is yamux's, with bounds that a hostile peer cannot exceed: 256 KiB in
// flight a stream, and neither keep-alive nor a short limit for writing, for a
// paused guest is not a dead one.
func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.MaxStreamWindowSize = window
	c.AcceptBacklog = 256
	c.StreamOpenTimeout = 0 // DialPort has its own limit; yamux's would end the session
	c.ConnectionWriteTimeout = time.Hour
	c.LogOutput = io.Discard
	return c
}

// Session is a session as the host has it.
type Session struct {
	*yamux.Session
	guard *guard
}

// Heard returns when the guest sent something last.
func (s *Session) Heard() time.Time { return time.Unix(0, s.guard.heard.Load()) }

// Host begins a session as the host and returns when the guest has answered,
// which may be long after: the guest has to boot first. It ends with ctx's error,
// or that of the connection.
func Host(ctx context.Context, conn io.ReadWriteCloser) (*Session, error) {
	raw := make([]byte, nonceLen/2)
	_, _ = rand.Read(raw)
	nonce := hex.EncodeToString(raw)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	answered := make(chan struct{})
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(noise)
		if err == nil {
			err = repeat(conn, syn+nonce+"\n", answered)
		}
		sent <- err
	}()
	r := bufio.NewReader(conn)
	err := await(r, ack, func(n string) bool { return n == nonce })
	close(answered)
	err = errors.Join(err, <-sent)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	g := &guard{Reader: r}
	g.heard.Store(time.Now().UnixNano())
	s, err := yamux.Client(&stream{g, conn}, config())
	if err != nil {
		return nil, err
	}
	return &Session{s, g}, nil
}

func repeat(w io.Writer, line string, until <-chan struct{}) error {
	t := time.NewTicker(synEvery)
	defer t.Stop()
	for {
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
		select {
		case <-until:
			return nil
		case <-t.C:
		}
	}
}

// await reads lines until one has the prefix and a nonce that is wanted. Whatever
// else comes is discarded, without keeping more than a line's length of it.
func await(r *bufio.Reader, prefix string, want func(nonce string) bool) error {
	var line []byte
	for {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if b == prefix[0] { // wherever it stands, a handshake may begin here
			line = line[:0]
		}
		if b != '\n' {
			if len(line) < maxLine {
				line = append(line, b)
			}
			continue
		}
		nonce, ok := strings.CutPrefix(string(line), prefix)
		line = line[:0]
		if ok && isNonce(nonce) && want(nonce) {
			return nil
		}
	}
}

func isNonce(s string) bool {
	if len(s) != nonceLen {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// stream is a connection whose first bytes were read ahead.
type stream struct {
	io.Reader
	c io.ReadWriteCloser
}

func (s *stream) Write(p []byte) (int, error) { return s.c.Write(p) }
func (s *stream) Close() error                { return s.c.Close() }

// The first line on each stream, as on Firecracker's vsock
// (https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md).
const (
	connect = "CONNECT "
	ok      = "OK "
)

// WriteConnect asks for a port of the guest.
func WriteConnect(w io.Writer, port uint32) error {
	_, err := fmt.Fprintf(w, "%s%d\n", connect, port)
	return err
}

// ReadConnect reads which port is asked for.
func ReadConnect(r io.Reader) (uint32, error) { return readPort(r, connect) }

// WriteOK says that the port was reached.
func WriteOK(w io.Writer, port uint32) error {
	_, err := fmt.Fprintf(w, "%s%d\n", ok, port)
	return err
}

// ReadOK reads that a port was reached.
func ReadOK(r io.Reader) (uint32, error) { return readPort(r, ok) }

// readPort reads a line byte by byte: what follows it belongs to the caller.
func readPort(r io.Reader, prefix string) (uint32, error) {
	var line []byte
	var b [1]byte
	for len(line) <= maxLine {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, err
		}
		if b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		rest, found := strings.CutPrefix(string(line), prefix)
		port, err := strconv.ParseUint(rest, 10, 32)
		if !found || err != nil {
			return 0, fmt.Errorf("%q is not %q and a port", line, strings.TrimSpace(prefix))
		}
		return uint32(port), nil
	}
	return 0, errors.New("the first line is too long")
}
