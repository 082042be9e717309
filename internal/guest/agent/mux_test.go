package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/mux"
	"github.com/mvmctl/mvm/internal/key"
)

const (
	nonceA = "0123456789abcdef"
	nonceB = "fedcba9876543210"
)

// script is a device that reads as in and keeps what is written.
type script struct {
	io.Reader
	out bytes.Buffer
}

func (s *script) Write(p []byte) (int, error) { return s.out.Write(p) }

func TestHandshake(t *testing.T) {
	synA, synB := synPrefix+nonceA+"\n", synPrefix+nonceB+"\n"
	ackA, ackB := ackPrefix+nonceA+"\n", ackPrefix+nonceB+"\n"
	for _, tc := range []struct{ name, in, out, first string }{
		{"at once", synA + "\x00\x01rest", ackA, "\x00\x01"},
		{"after noise", "noise\n\x00\x00\x01" + synA[:9] + synA + "\x00\x01", ackA, "\x00\x01"},
		{"repeated", synA + synA + synA + "\x00\x02", ackA, "\x00\x02"},
		{"a new host", synA + synB + synB + "\x00\x00", ackA + ackB, "\x00\x00"},
		{"bad nonce", synPrefix + strings.Repeat("g", 16) + "\n" + synA + "\x00\x00", ackA, "\x00\x00"},
		{"line too long", synA[:len(synA)-1] + "0\n" + synB + "\x00\x00", ackB, "\x00\x00"},
		{"long noise", strings.Repeat("x", 1<<16) + synA + "\x00\x00", ackA, "\x00\x00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &script{Reader: strings.NewReader(tc.in)}
			first, err := handshake(s)
			if err != nil || string(first) != tc.first || s.out.String() != tc.out {
				t.Errorf("first %q, error %v, wrote %q; want %q and %q", first, err, s.out.String(), tc.first, tc.out)
			}
		})
	}
	for _, in := range []string{"", synA[:5], synA, synA + "\x00"} {
		if _, err := handshake(&script{Reader: strings.NewReader(in)}); !errors.Is(err, io.EOF) {
			t.Errorf("%q: %v, want io.EOF", in, err)
		}
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte(synPrefix + nonceA + "\n\x00\x01"))
	f.Add([]byte("\x00\x00" + synPrefix + nonceA + "\n" + synPrefix + nonceB + "\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &script{Reader: bytes.NewReader(in)}
		first, err := handshake(s)
		if err == nil && len(first) != 2 {
			t.Errorf("%d bytes read ahead", len(first))
		}
		if got, most := bytes.Count(s.out.Bytes(), []byte(ackPrefix)), bytes.Count(in, []byte(synPrefix)); got > most {
			t.Errorf("%d answers to %d questions", got, most)
		}
	})
}

// lease is a host's end that can be given back: closing it wakes its reader and
// leaves the line open, as the socket of a serial port.
type lease struct{ *os.File }

func (l lease) Close() error { return l.SetDeadline(time.Now()) }

// TestHostsComeAndGo lets three hosts in a row use one line, the second dying
// in the middle of a frame: so does a host for a guest that is loaded from a snapshot.
func TestHostsComeAndGo(t *testing.T) {
	hostKey, err := key.Generate(key.ED25519, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	userKey, err := key.Generate(key.ED25519, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(guest.AgentParams{HostKey: string(hostKey.Private), AuthorizedKey: userKey.Public.Line(), Port: 1024})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, line := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	defer func() { _ = ours.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- s.serveMux(ctx, &port{f: line, ctx: ctx, opened: time.Now()}) }()
	for i := range 3 {
		if err := ours.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		sess, err := mux.Host(ctx, lease{ours})
		if err != nil {
			t.Fatal(err)
		}
		dial := func(context.Context) (net.Conn, error) {
			c, err := sess.Open()
			if err != nil {
				return nil, err
			}
			if err := mux.WriteConnect(c, 1024); err != nil {
				return nil, err
			}
			_, err = mux.ReadOK(c)
			return c, err
		}
		c, _, err := guest.WaitReady(ctx, dial, guest.Login{HostKey: hostKey.Public.Key, Signers: []ssh.Signer{userKey.Signer}})
		if err != nil {
			t.Fatalf("host %d: %v", i, err)
		}
		if i != 1 {
			_ = c.Close()
		}
		_ = sess.Close()
		if i == 1 {
			frame := []byte{0, 0, 0, 0, 0, 0, 0, 9} // of yamux: version, data, no flags, stream 9
			frame = append(binary.BigEndian.AppendUint32(frame, mux.MaxFrame), 'x')
			if err := errors.Join(ours.SetDeadline(time.Time{}), writeAll(ours, frame)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
	_ = line.Close()
	<-served
}

func writeAll(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

func TestAskInit(t *testing.T) {
	for _, name := range []string{"systemd", "busybox", "openrc-init", "sysvinit", "init"} {
		if askInit(name, false) == nil || askInit(name, true) == nil {
			t.Errorf("nobody is asked under %s", name)
		}
	}
	if askInit("sh", false) != nil {
		t.Error("a shell as PID 1 is asked to power off")
	}
}
