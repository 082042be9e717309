package mux

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// A guest that says anything after its answer can end the session, not open a
// stream on the host, and cannot hang what asks for a stream longer than it waits.
func FuzzHost(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("garbage that is no frame at all"))
	f.Add([]byte(frame(1, 2, 1, 0, "") + frame(0, 0, 1, 3, "abc")))
	f.Add([]byte(frame(0, 1, 2, 5, "unasked")))
	f.Add([]byte(frame(2, 1, 0, 7, "")))
	f.Add([]byte(frame(3, 0, 0, 0, "")))
	f.Add([]byte(frame(0, 0, 1, 0xffffffff, "no end")))
	f.Add([]byte(frame(1, 2, 1, 0xffffffff, "") + frame(1, 4, 1, 0, "")))
	f.Fuzz(func(t *testing.T, says []byte) {
		host, guest := net.Pipe()
		defer func() { _ = errors.Join(host.Close(), guest.Close()) }()
		go func() {
			r := bufio.NewReader(guest)
			answered := false
			for {
				line, err := r.ReadBytes('\n')
				if err != nil {
					return
				}
				if nonce := bytes.TrimSuffix(bytes.TrimPrefix(line, []byte(syn)), []byte("\n")); !answered && len(nonce) == nonceLen {
					answered = true
					go func() { _, _ = guest.Write(append([]byte(ack+string(nonce)+"\n"), says...)) }()
					_, _ = io.Copy(io.Discard, r)
					return
				}
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		s, err := Host(ctx, host)
		if err != nil {
			return
		}
		defer func() { _ = s.Close() }()
		if c, err := s.OpenStream(); err == nil {
			_ = c.SetDeadline(time.Now().Add(5 * time.Millisecond))
			_, _ = c.Write([]byte("hello"))
			_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
		}
		if n := s.NumStreams(); n > 1 {
			t.Errorf("the guest has opened %d streams", n-1)
		}
	})
}

// Frames are followed wherever they are cut: no stream of a guest's, and no ping,
// gets past.
func FuzzGuard(f *testing.F) {
	f.Add([]byte(frame(1, 2, 1, 0, "")+frame(0, 0, 1, 3, "abc")), 3)
	f.Add([]byte(frame(0, 1, 2, 5, "hello")), 1)
	f.Add([]byte(frame(0, 0, 1, 13, frame(0, 1, 2, 0, "x"))), 7)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		if step < 1 || step > 64 {
			return
		}
		unasked := false
		for rest := in; len(rest) >= HeaderLen; {
			h := rest[:HeaderLen]
			rest = rest[HeaderLen:]
			if binary.BigEndian.Uint16(h[2:])&flagSYN != 0 {
				unasked = true
				break
			}
			if h[1] == typeData {
				rest = rest[min(uint64(len(rest)), uint64(binary.BigEndian.Uint32(h[8:]))):]
			}
		}
		g := &guard{Reader: bytes.NewReader(in)}
		var err error
		for buf := make([]byte, step); err == nil; {
			_, err = g.Read(buf)
		}
		if errors.Is(err, errUnasked) != unasked {
			t.Errorf("the guard says %v, and something unasked is there: %v", err, unasked)
		}
	})
}

func FuzzPortLine(f *testing.F) {
	for _, s := range []string{"OK 1024\n", "OK 4294967296\n", "CONNECT 1\n", "OK", "\n", "OK +1\n", "OK 0x1\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		port, err := ReadOK(r)
		if read := len(in) - r.Len(); read > maxLine+1 {
			t.Errorf("%d bytes were read for a line", read)
		}
		if err != nil {
			return
		}
		var back bytes.Buffer
		if err := WriteOK(&back, port); err != nil || !bytes.HasPrefix(in, []byte(ok)) {
			t.Errorf("%q is port %d, %v", in, port, err)
		}
	})
}
