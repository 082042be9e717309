package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLogTail(t *testing.T) {
	long := strings.Repeat("x", logMaxLine+10)
	for _, c := range []struct {
		name         string
		older, newer string
		last         int
		want         []string
	}{
		{"nothing", "", "", 5, nil},
		{"all", "a\n", "b\nc\n", -1, []string{"a", "b", "c"}},
		{"last", "a\nb\n", "c\n", 2, []string{"b", "c"}},
		{"more than there is", "", "c\n", 9, []string{"c"}},
		{"none", "a\n", "b\n", 0, nil},
		{"rotated within a line", "a\nb1", "b2\nc\n", -1, []string{"a", "b1b2", "c"}},
		{"without an end", "", "a\nlogin: ", 2, []string{"a", "login: "}},
		{"carriage returns", "", "a\r\r\nb\r\n", -1, []string{"a", "b"}},
		{"too long", "", long + "\nend\n", -1, []string{long[:logMaxLine], long[logMaxLine:], "end"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			put(t, path, c.newer)
			if c.older != "" {
				put(t, path+".1", c.older)
			}
			var got []string
			err := (&logReader{path: path}).run(t.Context(), c.last, func(s string) error { got = append(got, s); return nil })
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// The reading is stopped at each line and the log changed there, as a supervisor
// does: more lines, a rotation, a beginning from nothing.
func TestLogFollow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	put(t, path, "old\none\n")
	grow := func(text string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString(text)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	rotate := func() {
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
	}
	steps := map[string]func(){
		"one":   func() { grow("two\nthr") },
		"two":   func() { grow("ee\n"); rotate(); grow("four\n") },
		"four":  func() { rotate(); grow("five\n"); rotate(); grow("six\n") },
		"six":   func() { put(t, path, "7\n") },
		"7":     func() { grow("end") },
		"three": func() {}, "five": func() {},
	}
	// What is waited for without an end of line comes when the VM is removed.
	last := func() { _ = os.RemoveAll(dir) }
	var got []string
	err := (&logReader{path: path, follow: true}).run(t.Context(), 1, func(s string) error {
		got = append(got, s)
		if f := steps[s]; f != nil {
			f()
		}
		if s == "7" {
			last()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"one", "two", "three", "four", "five", "six", "7", "end"}, got); d != "" {
		t.Error(d)
	}
}

// A log that was begun anew between two looks, and is as long again, is noticed.
func TestLogFollowAcrossATruncation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	put(t, path, "first\n")
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	err := (&logReader{path: path, follow: true}).run(ctx, -1, func(s string) error {
		switch got = append(got, s); s {
		case "first":
			put(t, path, "other\nsecond\n")
		case "second":
			cancel()
		}
		return nil
	})
	if d := cmp.Diff([]string{"first", "other", "second"}, got); d != "" || !errors.Is(err, context.Canceled) {
		t.Errorf("%v\n%s", err, d)
	}
}

func TestLogTimes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	put(t, path, "a\nb\nend")
	var got []string
	if err := (&logReader{path: path, times: true}).run(t.Context(), -1, func(s string) error { got = append(got, s); return nil }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"- a", "- b", "- end"}, got); d != "" {
		t.Errorf("nothing tells the times: %s", d)
	}
}

func TestLogFollowEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	put(t, path, "a\n")
	ctx, cancel := context.WithCancel(t.Context())
	l := &logReader{path: path, follow: true}
	if err := l.run(ctx, -1, func(string) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	stop := fmt.Errorf("enough")
	if err := l.run(t.Context(), -1, func(string) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
}

// What a guest prints is handed on line by line, all of it, each of bounded length.
func FuzzLogLines(f *testing.F) {
	f.Add([]byte("a\r\nb\n\nc"))
	f.Add(bytes.Repeat([]byte("x"), logMaxLine+5))
	f.Add([]byte("\x00\xff\x1b[2J\r\r\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "log")
		put(t, path, string(data))
		var got []byte
		err := (&logReader{path: path}).run(t.Context(), -1, func(s string) error {
			if len(s) > logMaxLine || strings.Contains(s, "\n") {
				t.Errorf("a line of %d bytes", len(s))
			}
			got = append(got, s...)
			return nil
		})
		drop := func(b []byte) string { return strings.NewReplacer("\r", "", "\n", "").Replace(string(b)) }
		if err != nil || drop(got) != drop(data) {
			t.Errorf("%q became %q, %v", data, got, err)
		}
	})
}
