package firecracker

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// muxer answers one connection after the other with answer and then echoes.
func muxer(t *testing.T, answer string, hang bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := fsx.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn, answer, hang)
		}
	}()
	return path
}

func serve(conn net.Conn, answer string, hang bool) {
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || line != "CONNECT 1024\n" {
		return
	}
	if _, err := io.WriteString(conn, answer); err != nil || answer == "" && !hang {
		return
	}
	_, _ = io.Copy(conn, r)
}

func TestDialVsock(t *testing.T) {
	// What the guest sends at once after the handshake must not be swallowed.
	conn, err := dialVsock(t.Context(), muxer(t, "OK 1073741824\nSSH-2.0\n", false), 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "echo"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("SSH-2.0\necho"))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "SSH-2.0\necho" {
		t.Errorf("read %q, error %v", got, err)
	}
}

func TestDialVsockFails(t *testing.T) {
	for name, path := range map[string]string{
		"nothing listens": muxer(t, "", false),
		"other answer":    muxer(t, "HTTP/1.1 400\n", false),
		"endless answer":  muxer(t, "OK 1111111111111111111111111111", false),
		"no socket":       filepath.Join(t.TempDir(), "none"),
	} {
		conn, err := dialVsock(t.Context(), path, 1024)
		if conn != nil || !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
			t.Errorf("%s: got %v, %v", name, conn, err)
		}
	}
}

func TestDialVsockCancel(t *testing.T) {
	path := muxer(t, "", true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := dialVsock(ctx, path, 1024); done <- err }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
