package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/tree"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

func TestTree(t *testing.T) {
	t.Run("over SSH", func(t *testing.T) { testTree(t, connect(t, start(t))) })
	t.Run("beside SSH", func(t *testing.T) {
		l := start(t)
		c, used := connect(t, l), new(counter)
		c.UseData(used.of(l.data))
		testTree(t, c)
		if used.Load() < 6<<20 {
			t.Errorf("%d bytes went beside SSH", used.Load())
		}
	})
	t.Run("an agent without", func(t *testing.T) {
		l := start(t)
		c := connect(t, l)
		c.UseData(l.dial) // speaks SSH there
		testTree(t, c)
	})
}

// counter counts what comes and goes over streams.
type counter struct{ atomic.Int64 }

func (n *counter) of(dial guest.DialFunc) guest.DialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		return counted{c, n}, err
	}
}

type counted struct {
	net.Conn
	n *counter
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func testTree(t *testing.T, c *guest.Client) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, []byte(strings.Repeat("x", 3<<20)), 0o640); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	s, err := c.Tree(limit(t), tree.Args([]string{src}, tree.Target{}), nil, &stream)
	if err != nil || s.Files != 1 || s.Bytes != 3<<20 {
		t.Fatalf("pack: %+v, %v", s, err)
	}
	whole := bytes.Clone(stream.Bytes())
	to := tree.Args(nil, tree.Target{Path: dir + "/new"})
	if s, err = c.Tree(limit(t), to, &stream, nil); err != nil || s.Bytes != 3<<20 {
		t.Fatalf("unpack: %+v, %v", s, err)
	}
	if data, err := os.ReadFile(dir + "/new"); err != nil || len(data) != 3<<20 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	for _, tc := range []struct {
		name string
		args []string
		in   []byte
		code tree.Code
	}{
		{"no source", tree.Args([]string{dir + "/none"}, tree.Target{}), nil, tree.NotFound},
		{"in the way", to, whole, tree.Exists},
		{"not a directory", tree.Args(nil, tree.Target{Path: src + "/"}), whole, tree.NotDir},
		{"broken off", tree.Args(nil, tree.Target{Path: dir + "/part"}), whole[:2<<20], tree.Other},
	} {
		var e *tree.Error
		if _, err := c.Tree(limit(t), tc.args, bytes.NewReader(tc.in), nil); !errors.As(err, &e) || e.Code != tc.code {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.code)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
}

// A copy whose receiver, or caller, gives up ends in the guest too, and leaves
// nothing there.
func TestTreeIsGivenUp(t *testing.T) {
	l, dir := start(t), t.TempDir()
	c := connect(t, l)
	c.UseData(l.data)
	if err := os.Truncate(mustCreate(t, dir+"/large"), 64<<20); err != nil {
		t.Fatal(err)
	}
	gaveUp := errors.New("no more")
	_, err := c.Tree(limit(t), tree.Args([]string{dir + "/large"}, tree.Target{}), nil, &refuser{after: 1 << 20, err: gaveUp})
	if !errors.Is(err, gaveUp) {
		t.Errorf("a receiver gave up: %v", err)
	}
	to := t.TempDir()
	ctx, cancel := context.WithCancel(limit(t))
	r, w := io.Pipe()
	go func() {
		var head bytes.Buffer
		if _, err := tree.Pack(&head, []string{dir + "/large"}); err == nil {
			_, _ = w.Write(head.Bytes()[:head.Len()/2])
		}
		cancel()
	}()
	if _, err := c.Tree(ctx, tree.Args(nil, tree.Target{Path: to + "/new"}), r, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_ = r.Close()
	for end := time.Now().Add(time.Minute); ; {
		left, err := os.ReadDir(to)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left in the guest: %v", left)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func mustCreate(t *testing.T, path string) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// refuser takes so many bytes.
type refuser struct {
	after int
	err   error
}

func (r *refuser) Write(p []byte) (int, error) {
	if r.after -= len(p); r.after < 0 {
		return 0, r.err
	}
	return len(p), nil
}

// Streams of data that no command asks for come to nothing, and there are not many.
func TestDataWithoutCommand(t *testing.T) {
	l := start(t)
	say := func(text string) (string, net.Conn) {
		c, err := l.data(limit(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_, _ = io.WriteString(c, text)
		answer := make([]byte, len(wire.DataOK))
		n, _ := io.ReadFull(c, answer)
		return string(answer[:n]), c
	}
	ticket := func(i int) string { return strings.Repeat("0", wire.TicketLen-4) + fmt.Sprintf("%04x\n", i) }
	for _, text := range []string{strings.Repeat("x", wire.TicketLen+1), ticket(0)[1:] + "0", "SSH-2.0-x" + strings.Repeat("\r\n", wire.TicketLen)} {
		if got, _ := say(text); got != "" {
			t.Errorf("%q was answered with %q", text, got)
		}
	}
	taken := 0
	for i := range 100 {
		if got, _ := say(ticket(i)); got == wire.DataOK {
			taken++
		}
	}
	if taken != 64 {
		t.Errorf("%d streams wait", taken)
	}
	if got, _ := say(ticket(1)); got != "" {
		t.Errorf("a ticket was taken twice: %q", got)
	}
}
