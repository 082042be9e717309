package fsx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a*b")
	for i, perm := range []fs.FileMode{0o600, 0o644, 0o400} {
		want := fmt.Sprint("content ", i)
		must(t, WriteFile(path, []byte(want), perm))
		got, err := os.ReadFile(path)
		must(t, err)
		st, err := os.Stat(path)
		must(t, err)
		if string(got) != want || st.Mode() != perm {
			t.Errorf("got %q with %v, want %q with %v", got, st.Mode(), want, perm)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	if err := WriteFile(filepath.Join(dir, "no", "dir"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("err = %v", err)
	}
	// A name that cannot be replaced keeps what it is, and no temporary file stays.
	must(t, os.MkdirAll(filepath.Join(dir, "d", "x"), 0o755))
	if err := WriteFile(filepath.Join(dir, "d"), nil, 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestWriteFileReplacesLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	must(t, os.WriteFile(target, []byte("untouched"), 0o600))
	must(t, os.Symlink(target, link))
	must(t, WriteFile(link, []byte("new"), 0o600))
	if got, err := os.ReadFile(target); err != nil || string(got) != "untouched" {
		t.Errorf("the link's target has %q, %v", got, err)
	}
}

// Readers see whole files only.
func TestWriteFileIsWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, WriteFile(path, []byte(strings.Repeat("0", 10000)), 0o600))
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				data, err := os.ReadFile(path)
				if err != nil || len(data) != 10000 || strings.Count(string(data), string(data[:1])) != 10000 {
					t.Errorf("%d bytes, %v", len(data), err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 50 {
		must(t, WriteFile(path, []byte(strings.Repeat(fmt.Sprint(i%10), 10000)), 0o600))
	}
	close(stop)
	readers.Wait()
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := TryLock(path)
	must(t, err)
	if _, err := TryLock(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := LockWait(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("wait with an ended context: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		l, err := LockWait(t.Context(), path)
		l.Unlock()
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("two hold the lock: %v", err)
	default:
	}
	first.Unlock()
	if err := <-got; err != nil {
		t.Errorf("after the first was released: %v", err)
	}
	// The waiter that gave up let go of the lock as well.
	l, err := LockWait(t.Context(), path)
	must(t, err)
	l.Unlock()
	(*Lock)(nil).Unlock()
	if _, err := TryLock(filepath.Join(path, "x")); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("a lock below a file: %v", err)
	}
}

func TestUnixSockets(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 100))
	must(t, os.MkdirAll(long, 0o700))
	for name, path := range map[string]string{"short": filepath.Join(t.TempDir(), "s"), "long": filepath.Join(long, "s")} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // the second replaces the socket that the first left
				l, err := ListenUnix(path)
				must(t, err)
				st, err := os.Stat(path)
				must(t, err)
				if st.Mode() != fs.ModeSocket|0o600 {
					t.Errorf("mode %v", st.Mode())
				}
				go func() {
					c, err := l.Accept()
					if err == nil {
						_, _ = c.Write([]byte("hello"))
						_ = c.Close()
					}
				}()
				c, err := DialUnix(t.Context(), path)
				must(t, err)
				buf := make([]byte, 5)
				if _, err := c.Read(buf); err != nil || string(buf) != "hello" {
					t.Errorf("%q, %v", buf, err)
				}
				must(t, errors.Join(c.Close(), l.Close()))
			}
			if _, err := DialUnix(t.Context(), path); err == nil {
				t.Error("dialled a socket that nobody listens on")
			}
			if _, err := DialUnix(t.Context(), path+"/missing/x"); err == nil {
				t.Error("dialled nothing")
			}
		})
	}
}

func TestListenUnixKeepsFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	must(t, os.WriteFile(path, []byte("data"), 0o600))
	if _, err := ListenUnix(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("err = %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "data" {
		t.Errorf("the file was replaced: %q, %v", got, err)
	}
}

// Whoever owns a directory cannot have us talk to another socket.
func TestDialUnixFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	l, err := ListenUnix(filepath.Join(dir, "s"))
	must(t, err)
	defer l.Close()
	must(t, os.Symlink("s", filepath.Join(dir, "link")))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for _, name := range []string{"link", "file"} {
		if c, err := DialUnix(t.Context(), filepath.Join(dir, name)); err == nil || c != nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}
