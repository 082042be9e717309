package mux

import (
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// Frames of yamux (https://github.com/hashicorp/yamux/blob/master/spec.md): a
// header of 12 bytes, which are version, type, flags (2), stream (4), length (4);
// after that of a data frame come as many bytes as it says.
const (
	headerLen = 12
	typeData  = 0
	flagSYN   = 1
)

// errUnasked says that the guest wanted something of the host.
var errUnasked = errors.New("the guest opens a stream or pings, which only the host does")

// guard reads what a guest sends, and lets it answer only. Streams that a guest
// opens would wait, with what it sent on them, for somebody to accept them; each
// ping would start a goroutine that waits to answer it. A hostile guest could
// have any amount of memory by either.
type guard struct {
	io.Reader
	header [headerLen]byte
	have   int    // bytes of the header
	body   uint64 // bytes of the frame that are still to come

	heard atomic.Int64 // when something came last, in nanoseconds since 1970
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Reader.Read(p)
	if n > 0 {
		g.heard.Store(time.Now().UnixNano())
	}
	if !g.passes(p[:n]) {
		return 0, errUnasked
	}
	return n, err
}

// passes follows the frames in b.
func (g *guard) passes(b []byte) bool {
	for len(b) > 0 {
		if g.body > 0 {
			n := min(g.body, uint64(len(b)))
			g.body, b = g.body-n, b[n:]
			continue
		}
		n := copy(g.header[g.have:], b)
		g.have, b = g.have+n, b[n:]
		if g.have < headerLen {
			break
		}
		g.have = 0
		if binary.BigEndian.Uint16(g.header[2:])&flagSYN != 0 {
			return false
		}
		if g.header[1] == typeData {
			g.body = uint64(binary.BigEndian.Uint32(g.header[8:]))
		}
	}
	return true
}
