package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDetachKeys(t *testing.T) {
	for _, c := range []struct{ typed, want string }{
		{"plain", "plain"},
		{"a\x18dlost", "a"},
		{"a\x18Dlost", "a"},
		{"a\x18\x04lost", "a"}, // Ctrl still held down
		{"a\x18\x18d", "a\x18d"},
		{"a\x18q", "a\x18q"},
		{"\x18q\x18q\x18d", "\x18q\x18q"},
		{"a\x18", "a"},
		{"", ""},
	} {
		for name, r := range map[string]io.Reader{"at once": strings.NewReader(c.typed), "by one": iotest.OneByteReader(strings.NewReader(c.typed))} {
			got, err := io.ReadAll(&untilDetach{r: r})
			if err != nil || string(got) != c.want {
				t.Errorf("%q %s: %q, %v; want %q", c.typed, name, got, err, c.want)
			}
		}
	}
}

// relay is a console's other side: it echoes what is typed.
func relay(t *testing.T) (viewer net.Conn, other net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	viewer, err = net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if other, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	return viewer, other
}

func TestViewEnds(t *testing.T) {
	t.Run("detached", func(t *testing.T) {
		conn, other := relay(t)
		go func() { _, _ = io.Copy(other, other); _ = other.Close() }()
		var out bytes.Buffer
		end, err := view(t.Context(), conn, StreamIO{Stdin: strings.NewReader("ls\n\x18d"), Stdout: &out})
		if end != ConsoleDetached || err != nil || out.String() != "ls\n" {
			t.Errorf("%q, %v, %q", end, err, out.String())
		}
	})
	t.Run("closed", func(t *testing.T) {
		conn, other := relay(t)
		_, _ = io.WriteString(other, "bye")
		_ = other.Close()
		in, _ := io.Pipe()
		var out bytes.Buffer
		end, err := view(t.Context(), conn, StreamIO{Stdin: in, Stdout: &out})
		if end != ConsoleClosed || err != nil || out.String() != "bye" {
			t.Errorf("%q, %v, %q", end, err, out.String())
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		conn, _ := relay(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		in, _ := io.Pipe()
		if _, err := view(ctx, conn, StreamIO{Stdin: in}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
