package mux

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/yamux"
)

// limit bounds whatever a test waits for. It is no measure.
const limit = time.Minute

// line is a serial port, as a socket: both its ends.
func line(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	host, guest = net.Pipe()
	t.Cleanup(func() { _, _ = host.Close(), guest.Close() })
	return host, guest
}

// answer is the guest's side of a handshake: it throws everything away up to a
// SYN, and says what reply makes of its nonce.
func answer(t *testing.T, r *bufio.Reader, w io.Writer, reply func(nonce string) string) {
	t.Helper()
	for {
		text, err := r.ReadString('\n')
		if err != nil {
			t.Errorf("the guest reads %q, %v", text, err)
			return
		}
		if _, nonce, ok := strings.Cut(text, syn); ok {
			if _, err := io.WriteString(w, reply(strings.TrimSuffix(nonce, "\n"))); err != nil {
				t.Errorf("the guest answers: %v", err)
			}
			return
		}
	}
}

func right(nonce string) string { return ack + nonce + "\n" }

// guestSession is the guest's side of a session, which echoes on each stream. It
// passes over handshakes that were repeated before the answer was read.
func guestSession(t *testing.T, r *bufio.Reader, c io.ReadWriteCloser) *yamux.Session {
	t.Helper()
	for {
		head, err := r.Peek(len(syn))
		if err != nil || string(head) != syn {
			break
		}
		if _, err := r.ReadString('\n'); err != nil {
			break
		}
	}
	cfg := config()
	s, err := yamux.Server(&stream{r, c}, cfg)
	if err != nil {
		t.Errorf("yamux: %v", err)
		return nil
	}
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return s
}

func wantEcho(t *testing.T, s *yamux.Session, text string) {
	t.Helper()
	c, err := s.Open()
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	_ = c.SetDeadline(time.Now().Add(limit))
	go func() {
		_, _ = io.WriteString(c, text)
		_ = c.Close() // the writing side: reading goes on
	}()
	if got, err := io.ReadAll(c); err != nil || string(got) != text {
		t.Fatalf("echo of %d bytes: %d bytes, %v", len(text), len(got), err)
	}
}

// A session begins whatever was on the line before.
func TestHostAfterNoise(t *testing.T) {
	other := strings.Repeat("0", nonceLen)
	for name, noise := range map[string]string{
		"none":                    "",
		"console":                 "[    0.000000] Linux version\r\nlogin: ",
		"zeros":                   strings.Repeat("\x00", 4096),
		"no end of line":          strings.Repeat("x", 1<<20),
		"answer of another":       ack + other + "\n",
		"answer without a nonce":  ack + "\n",
		"answer that is too long": ack + other + other + other + other + other + "\n",
		"half an answer":          ack[:5],
		"frames of old":           "\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0a\x00\x00\x00\x00",
		"a guest that begins":     "\x00MVM-NEW guest\n",
		"a handshake":             syn + other + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := line(t)
			go func() {
				r := bufio.NewReader(guest)
				answer(t, r, guest, func(nonce string) string { return noise + right(nonce) })
				guestSession(t, r, guest)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			s, err := Host(ctx, host)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			before := time.Now()
			wantEcho(t, s.Session, "ping")
			if heard := s.Heard(); heard.Before(before) || heard.After(time.Now()) {
				t.Errorf("the guest was heard last at %s, and answered after %s", heard, before)
			}
			wantEcho(t, s.Session, strings.Repeat("long", 1<<18)) // more than a window
		})
	}
}

// A guest that answers the second question, having slept through the first, gets
// a session too.
func TestHostRepeats(t *testing.T) {
	host, guest := line(t)
	go func() {
		r := bufio.NewReader(guest)
		first := ""
		answer(t, r, guest, func(nonce string) string { first = nonce; return "" })
		answer(t, r, guest, func(nonce string) string {
			if nonce != first {
				t.Errorf("the nonce changed from %s to %s", first, nonce)
			}
			return right(nonce)
		})
		guestSession(t, r, guest)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	s, err := Host(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	wantEcho(t, s.Session, "ping")
}

func TestHostEnds(t *testing.T) {
	t.Run("cancelled", func(t *testing.T) {
		host, guest := line(t)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, _ = bufio.NewReader(guest).ReadString('\n')
			cancel()
		}()
		if s, err := Host(ctx, host); s != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("Host = %v, %v, want context.Canceled", s, err)
		}
	})
	t.Run("cancelled while nobody reads", func(t *testing.T) {
		host, _ := line(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if s, err := Host(ctx, host); s != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Host = %v, %v, want context.DeadlineExceeded", s, err)
		}
	})
	t.Run("hung up", func(t *testing.T) {
		host, guest := line(t)
		go func() {
			_, _ = bufio.NewReader(guest).ReadString('\n')
			_ = guest.Close()
		}()
		if s, err := Host(t.Context(), host); s != nil || err == nil {
			t.Errorf("Host = %v, %v, want an error", s, err)
		}
	})
}

// frame is one of yamux.
func frame(kind byte, flags uint16, stream, length uint32, body string) string {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, length)
	return string(b) + body
}

// What a guest has no business to say ends the session: the host then begins
// anew, with the handshake.
func TestSessionEnds(t *testing.T) {
	nonce := strings.Repeat("a", nonceLen)
	for name, says := range map[string]string{
		"opens a stream":              frame(1, 1, 2, 0, ""),
		"opens a stream with data":    frame(0, 1, 2, 4, "data"),
		"pings":                       frame(2, 1, 0, 7, ""),
		"opens one after others' end": frame(1, 4, 1, 0, "") + frame(0, 0, 9, 3, "abc") + frame(1, 1, 4, 0, ""),
		"handshake":                   syn + nonce + "\n",
		"late answer":                 right(nonce),
		"a guest that begins":         "\x00MVM-NEW guest\n",
		"console":                     "Debian GNU/Linux 12 vm ttyS0\n",
		"more than the window":        frame(0, 0, 1, 1<<30, strings.Repeat("x", 1000)),
		"another version":             frame(0, 0, 1, 0, "") + "\x01" + frame(0, 0, 1, 0, "")[1:],
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := line(t)
			opened := make(chan struct{}) // stream 1, of which some frames speak
			go func() {
				r := bufio.NewReader(guest)
				answer(t, r, guest, right)
				go func() { _, _ = io.Copy(io.Discard, r) }()
				<-opened
				_, _ = io.WriteString(guest, says)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			s, err := Host(ctx, host)
			if err != nil {
				close(opened)
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			if _, err := s.OpenStream(); err != nil {
				t.Error(err)
			}
			close(opened)
			select {
			case <-s.CloseChan():
			case <-ctx.Done():
				t.Error("the session goes on")
			}
		})
	}
}

// A guest that is reset begins on the same line, and so does a host.
func TestBeginAnew(t *testing.T) {
	// Host ends a session by closing its end: the line between is a socket of the
	// VMM, which takes the next client.
	for round := range 3 {
		host, guest := line(t)
		r := bufio.NewReader(guest)
		go func() {
			if round > 0 { // bytes of the session before, cut off in a frame
				_, _ = io.WriteString(guest, frame(0, 0, 1, 100, "half"))
			}
			answer(t, r, guest, right)
			guestSession(t, r, guest)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		s, err := Host(ctx, host)
		cancel()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		wantEcho(t, s.Session, "ping")
		_ = s.Close()
	}
}

// A guest that stops in the middle of a frame holds nobody who reads with a deadline.
func TestFrameWithoutAnEnd(t *testing.T) {
	host, guest := line(t)
	sent := make(chan error, 1)
	go func() {
		r := bufio.NewReader(guest)
		answer(t, r, guest, right)
		go func() { _, _ = io.Copy(io.Discard, r) }()
		_, err := io.WriteString(guest, frame(1, 2, 1, 0, "")+frame(0, 0, 1, 100, "abc"))
		if err == nil { // returns when it was read, which is when the rest is waited for
			_, err = io.WriteString(guest, "d")
		}
		sent <- err
	}()
	s, err := Host(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.OpenStream()
	if err = errors.Join(err, <-sent); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_ = c.SetReadDeadline(time.Now())
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	select {
	case err := <-read:
		if !errors.Is(err, yamux.ErrTimeout) {
			t.Errorf("got %v", err)
		}
	case <-time.After(limit):
		t.Error("it reads on after its deadline")
	}
	_ = s.Close()
}

// The guard sees frames wherever reads cut them, and changes nothing.
func TestGuardFollowsFrames(t *testing.T) {
	good := frame(0, 2, 1, 5, "\x00\x01\x00\x01\x00") + frame(1, 0, 1, 99, "") + frame(2, 2, 0, 1, "") + frame(0, 4, 1, 0, "") + frame(0, 0, 3, 300, strings.Repeat("\x00\x01", 150)) + frame(3, 0, 0, 0, "")
	for name, cut := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "one": iotest.OneByteReader, "half": iotest.HalfReader, "end with data": iotest.DataErrReader,
	} {
		got, err := io.ReadAll(&guard{Reader: cut(strings.NewReader(good))})
		if diff := cmp.Diff(good, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if _, err := io.ReadAll(&guard{Reader: cut(strings.NewReader(good + frame(2, 1, 0, 1, "")))}); !errors.Is(err, errUnasked) {
			t.Errorf("%s, then a ping: %v, want errUnasked", name, err)
		}
	}
}

func TestPortLines(t *testing.T) {
	var b bytes.Buffer
	if err := errors.Join(WriteConnect(&b, 1024), WriteOK(&b, 4294967295)); err != nil || b.String() != "CONNECT 1024\nOK 4294967295\n" {
		t.Fatalf("written %q, %v", b.String(), err)
	}
	b.WriteString("rest")
	if port, err := ReadConnect(&b); port != 1024 || err != nil {
		t.Errorf("ReadConnect = %d, %v", port, err)
	}
	if port, err := ReadOK(&b); port != 4294967295 || err != nil {
		t.Errorf("ReadOK = %d, %v", port, err)
	}
	if b.String() != "rest" {
		t.Errorf("left to read: %q, want all that follows the line", b.String())
	}
	for _, bad := range []string{"", "CONNECT", "CONNECT 1", "CONNECT \n", "CONNECT -1\n", "CONNECT 4294967296\n", "CONNECT 1 2\n", "connect 1\n", "OK 1\n", "\n", strings.Repeat("x", 1<<20)} {
		if port, err := ReadConnect(strings.NewReader(bad)); err == nil {
			t.Errorf("ReadConnect(%.20q) = %d", bad, port)
		}
	}
}

// Whatever a guest answers, the host takes no other nonce than its own, and keeps
// no more than a line of it.
func FuzzAwait(f *testing.F) {
	nonce := "0123456789abcdef"
	f.Add([]byte(ack + nonce + "\n"))
	f.Add([]byte("noise" + ack + ack + nonce + "\nrest"))
	f.Add([]byte(ack + "0123456789ABCDEF\n" + strings.Repeat("y", 200)))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		err := await(r, ack, func(n string) bool { return n == nonce })
		at := bytes.Index(in, []byte(ack+nonce+"\n"))
		if (err == nil) != (at >= 0) {
			t.Fatalf("await = %v, and an answer is at %d", err, at)
		}
		if err == nil {
			rest, _ := io.ReadAll(r)
			if want := in[at+len(ack)+nonceLen+1:]; !bytes.Equal(rest, want) {
				t.Errorf("left to read: %q, want %q", rest, want)
			}
		}
	})
}
