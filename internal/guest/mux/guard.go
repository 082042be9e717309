package mux

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"
)

// Frames of yamux (https://github.com/hashicorp/yamux/blob/master/spec.md): a
// header of 12 bytes, which are version, type, flags (2), stream (4), length (4);
// after that of a data frame come as many bytes as it says.
const (
	HeaderLen = 12
	typeData  = 0
	flagSYN   = 1
)

// BodyLen is how many bytes follow a frame's header.
func BodyLen(header []byte) uint32 {
	if header[1] != typeData {
		return 0
	}
	return binary.BigEndian.Uint32(header[8:])
}

var (
	// errUnasked says that the guest wanted something of the host.
	errUnasked = errors.New("the guest opens a stream or pings, which only the host does")

	// errTooLong says that a frame has more than a stream may have in flight.
	errTooLong = errors.New("the guest sends a frame that is longer than it may be")
)

// guard reads what a guest sends, and lets it answer only. Streams that a guest
// opens would wait, with what it sent on them, for somebody to accept them; each
// ping would start a goroutine that waits to answer it. A hostile guest could
// have any amount of memory by either.
//
// It passes on whole frames. While yamux waits for the rest of one it holds a lock of
// the stream that it is for, and no deadline ends a read of that: a guest that was
// cut off in a frame, or stops there, would hold who reads for ever.
type guard struct {
	io.Reader
	buf  []byte
	left []byte // of buf: what is not read yet

	heard atomic.Int64 // when something came last, in nanoseconds since 1970
}

func (g *guard) Read(p []byte) (int, error) {
	if len(g.left) == 0 {
		if err := g.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.left)
	g.left = g.left[n:]
	return n, nil
}

// next reads a frame.
func (g *guard) next() error {
	g.buf = slices.Grow(g.buf[:0], HeaderLen)[:HeaderLen]
	if err := g.fill(g.buf); err != nil {
		return err
	}
	if binary.BigEndian.Uint16(g.buf[2:])&flagSYN != 0 {
		return errUnasked
	}
	body := BodyLen(g.buf)
	if body > window {
		return errTooLong
	}
	g.buf = slices.Grow(g.buf, int(body))[:HeaderLen+int(body)]
	if err := g.fill(g.buf[HeaderLen:]); err != nil {
		return err
	}
	g.left = g.buf
	return nil
}

func (g *guard) fill(b []byte) error {
	for len(b) > 0 {
		n, err := g.Reader.Read(b)
		if n > 0 {
			g.heard.Store(time.Now().UnixNano())
		}
		if b = b[n:]; err != nil && len(b) > 0 {
			return err
		}
	}
	return nil
}
