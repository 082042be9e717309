package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// patchy is content with zeros in many places.
func patchy(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < n; i += 3000 + r.IntN(90_000) {
		b[i] = byte(1 + r.IntN(255))
	}
	return b
}

func newFile(t *testing.T, dir, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func wantContent(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes where %d were wanted, equal: %v, %v", len(got), len(want), bytes.Equal(got, want), err)
	}
}

func TestWriteSparse(t *testing.T) {
	for _, n := range []int{0, 1, page - 1, page, page + 1, copyBuffer, 3*copyBuffer + 77} {
		want := patchy(n)
		f := newFile(t, t.TempDir(), "disk")
		var last int64
		got, err := WriteSparse(t.Context(), f, io.MultiReader(bytes.NewReader(want[:n/3]), bytes.NewReader(want[n/3:])), func(done int64) { last = done })
		if err != nil || got != int64(n) || last != int64(n) {
			t.Errorf("%d bytes: %d, %d, %v", n, got, last, err)
		}
		wantContent(t, f.Name(), want)
	}
}

func TestWriteSparseLeavesHoles(t *testing.T) {
	f := newFile(t, t.TempDir(), "disk")
	if _, err := WriteSparse(t.Context(), f, bytes.NewReader(make([]byte, 8<<20)), nil); err != nil {
		t.Fatal(err)
	}
	if virtual, allocated, err := Sizes(f.Name()); err != nil || virtual != 8<<20 || allocated != 0 {
		t.Error(virtual, allocated, err)
	}
}

func TestCopyPartAndKeep(t *testing.T) {
	whole := patchy(5 << 20)
	for _, c := range [][2]int64{{0, 5 << 20}, {1 << 20, 3 << 20}, {512, 4 << 20}, {4096, 777}, {1<<20 + 512, 1<<20 + 1}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			dir := t.TempDir()
			src, dst := newFile(t, dir, "src"), newFile(t, dir, "dst")
			if _, err := WriteSparse(t.Context(), src, bytes.NewReader(whole), nil); err != nil {
				t.Fatal(err)
			}
			if err := CopyPart(t.Context(), dst, src, c[0], c[1], nil); err != nil {
				t.Fatal(err)
			}
			wantContent(t, dst.Name(), whole[c[0]:c[0]+c[1]])
			if err := Keep(t.Context(), src.Name(), c[0], c[1]); err != nil {
				t.Fatal(err)
			}
			wantContent(t, src.Name(), whole[c[0]:c[0]+c[1]])
		})
	}
}

// Where no blocks can be cut off (tmpfs), the part is copied.
func TestKeepCopies(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "mvm-test-")
	if err != nil {
		t.Skipf("needs a tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f := newFile(t, dir, "disk")
	whole := patchy(3 << 20)
	if _, err := WriteSparse(t.Context(), f, bytes.NewReader(whole), nil); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096); err == nil {
		t.Skip("this tmpfs can cut")
	}
	if err := Keep(t.Context(), f.Name(), 1<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	wantContent(t, f.Name(), whole[1<<20:2<<20])
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Error(entries, err)
	}
}

func TestWriteSparseEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := newFile(t, t.TempDir(), "disk")
	if _, err := WriteSparse(ctx, f, bytes.NewReader([]byte("x")), nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	bad := errors.New("torn")
	if _, err := WriteSparse(t.Context(), f, io.MultiReader(bytes.NewReader([]byte("x")), failing{bad}), nil); !errors.Is(err, bad) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
