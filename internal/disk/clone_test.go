package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// sparse makes a file of size bytes with a page of data at each offset.
func sparse(t *testing.T, path string, size int64, data ...int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, off := range data {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func sameContent(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ (%d and %d bytes)", a, b, len(x), len(y))
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestClone(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		data []int64
	}{
		"empty":         {0, nil},
		"a hole only":   {8 << 20, nil},
		"data first":    {64 << 20, []int64{0}},
		"data last":     {64 << 20, []int64{64<<20 - 4096}},
		"data between":  {80 << 20, []int64{4096, 40 << 20, 41 << 20}},
		"no whole page": {8192 + 17, []int64{0, 4096}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
			sparse(t, src, c.size, c.data...)
			if err := Clone(t.Context(), src, dst); err != nil {
				t.Fatal(err)
			}
			sameContent(t, src, dst)
			st, err := os.Stat(dst)
			if err != nil || st.Mode() != 0o600 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			_, want, _ := Sizes(src)
			if virtual, got, err := Sizes(dst); err != nil || virtual != c.size || got > want+8192 {
				t.Errorf("sizes %d %d, %v; want %d and about %d", virtual, got, err, c.size, want)
			}
			if d := cmp.Diff([]string{"dst", "src"}, names(t, dir)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCloneAcrossFileSystems(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "mvm-disk-test")
	if err != nil {
		t.Skipf("needs a writable /dev/shm: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(shm, "dst")
	sparse(t, src, 40<<20, 0, 33<<20)
	if err := Clone(t.Context(), src, dst); err != nil {
		t.Fatal(err)
	}
	sameContent(t, src, dst)
	if _, got, err := Sizes(dst); err != nil || got > 1<<20 {
		t.Errorf("holes became data: %d bytes, %v", got, err)
	}
}

func TestCloneRefuses(t *testing.T) {
	dir := t.TempDir()
	src, there := filepath.Join(dir, "src"), filepath.Join(dir, "there")
	sparse(t, src, 1<<20, 0)
	if err := os.WriteFile(there, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx      context.Context
		src, dst string
		want     error
	}{
		"no source":         {t.Context(), filepath.Join(dir, "missing"), filepath.Join(dir, "a"), mvm.ErrNotFound},
		"a directory":       {t.Context(), dir, filepath.Join(dir, "b"), mvm.ErrInvalid},
		"there already":     {t.Context(), src, there, mvm.ErrExists},
		"no directory":      {t.Context(), src, filepath.Join(dir, "missing", "d"), mvm.ErrNotFound},
		"context has ended": {done, src, filepath.Join(dir, "e"), context.Canceled},
	} {
		if err := Clone(c.ctx, c.src, c.dst); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if b, err := os.ReadFile(there); err != nil || string(b) != "precious" {
		t.Errorf("the file that was there: %q, %v", b, err)
	}
	if d := cmp.Diff([]string{"src", "there"}, names(t, dir)); d != "" {
		t.Error(d)
	}
}

func TestCreateWithoutTmpfile(t *testing.T) {
	dir := t.TempDir()
	dst := filepath.Join(dir, "dst")
	fill := func(f *os.File) error { _, err := f.WriteString("x"); return err }
	if err := createNamed(dst, fill); err != nil {
		t.Fatal(err)
	}
	if err := createNamed(dst, fill); !errors.Is(err, mvm.ErrExists) {
		t.Errorf("there already: %v", err)
	}
	fails := errors.New("no")
	if err := createNamed(filepath.Join(dir, "other"), func(*os.File) error { return fails }); !errors.Is(err, fails) {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"dst"}, names(t, dir)); d != "" {
		t.Error(d)
	}
}

// onSmallMount calls fn on a thread that has a file system of 4 MiB at dir, which
// nobody else sees.
func onSmallMount(t *testing.T, fn func(dir string)) {
	testenv.Require(t, "root")
	dir := t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := enterMounts(dir); err != nil {
			t.Error(err)
			return
		}
		fn(dir)
	}()
	<-done
}

func TestDiskFull(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	sparse(t, src, 64<<20, 0, 1<<20, 2<<20)
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	onSmallMount(t, func(dir string) {
		if err := Clone(t.Context(), src, filepath.Join(dir, "fits")); err != nil {
			t.Errorf("a sparse file that fits: %v", err)
		}
		err := Clone(t.Context(), big, filepath.Join(dir, "big"))
		if !errors.Is(err, mvm.ErrUnavailable) || !errors.Is(err, unix.ENOSPC) || mvm.HintOf(err) == "" {
			t.Errorf("more than there is: %v", err)
		}
		if err := EnoughSpace(dir, 8<<20); !errors.Is(err, mvm.ErrUnavailable) {
			t.Errorf("EnoughSpace: %v", err)
		}
		if err := EnoughSpace(dir, 1<<20); err != nil {
			t.Errorf("EnoughSpace: %v", err)
		}
		// The check ahead is no reservation: the writes themselves have to fail well.
		f, err := os.OpenFile(filepath.Join(dir, "eats all"), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Error(err)
			return
		}
		_, err = io.Copy(f, bytes.NewReader(make([]byte, 8<<20)))
		err = fault(errors.Join(err, f.Close()), "write disk", f.Name(), 8<<20)
		if !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
			t.Errorf("a full disk: %v", err)
		}
		if err := Overlay(t.Context(), src, Raw, filepath.Join(dir, "overlay"), 0); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("an overlay on a full disk: %v", err)
		}
		if d := cmp.Diff([]string{"eats all", "fits"}, names(t, dir)); d != "" {
			t.Error(d)
		}
	})
}

func TestCloneSharesBlocks(t *testing.T) {
	testenv.Require(t, "root")
	fsImage := filepath.Join(t.TempDir(), "fs")
	sparse(t, fsImage, 512<<20)
	host := &run.Host{}
	if _, err := host.Run(t.Context(), run.Cmd{Name: "mkfs.xfs", Args: []string{"-q", fsImage}}); err != nil {
		t.Skipf("needs mkfs.xfs: %v", err)
	}
	dir := t.TempDir()
	if _, err := host.Run(t.Context(), run.Cmd{Name: "mount", Args: []string{"-o", "loop", fsImage, dir}}); err != nil {
		t.Skipf("needs loop devices and xfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, bytes.Repeat([]byte("mvm!"), 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var before, after unix.Statfs_t
	if err := unix.Statfs(dir, &before); err != nil {
		t.Fatal(err)
	}
	if err := Clone(t.Context(), src, filepath.Join(dir, "dst")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statfs(dir, &after); err != nil {
		t.Fatal(err)
	}
	if used := int64(before.Bfree-after.Bfree) * before.Bsize; used > 16<<20 {
		t.Errorf("the clone of 128 MiB took %d bytes", used)
	}
	sameContent(t, src, filepath.Join(dir, "dst"))
}

func TestGrow(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	sparse(t, path, 1<<20, 0)
	for _, size := range []int64{1 << 20, 64 << 20, 64 << 20} {
		if err := Grow(path, size); err != nil {
			t.Fatal(err)
		}
		if virtual, allocated, err := Sizes(path); err != nil || virtual != size || allocated > 1<<20 {
			t.Errorf("sizes %d %d, %v", virtual, allocated, err)
		}
	}
	if err := Grow(path, 1<<20); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
		t.Errorf("shrinking: %v", err)
	}
	overlay := filepath.Join(dir, "overlay")
	if err := Overlay(t.Context(), path, Raw, overlay, 0); err != nil {
		t.Fatal(err)
	}
	if err := Grow(overlay, 1<<40); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("growing a qcow2: %v", err)
	}
	if err := Grow(filepath.Join(dir, "missing"), 1); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
}

func TestPool(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	sparse(t, base, 4<<20, 0, 1<<20)
	p := Pool{Base: base}
	take := func(name string) os.FileInfo {
		t.Helper()
		dst := filepath.Join(dir, name)
		if err := p.Take(t.Context(), dst); err != nil {
			t.Fatal(err)
		}
		sameContent(t, base, dst)
		st, err := os.Stat(dst)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	take("cold")
	if err := errors.Join(p.Refill(t.Context()), p.Refill(t.Context())); err != nil {
		t.Fatal(err)
	}
	ready, err := os.Stat(p.warm())
	if err != nil {
		t.Fatal(err)
	}
	if st := take("warm"); !os.SameFile(st, ready) || st.Mode() != 0o600 {
		t.Errorf("the ready clone was not taken, or has mode %v", st.Mode())
	}

	// A base that was replaced: the ready clone of the old one is not taken.
	if err := p.Refill(t.Context()); err != nil {
		t.Fatal(err)
	}
	sparse(t, base, 4<<20, 2<<20)
	if err := os.Chtimes(base, time.Time{}, time.Unix(1700000000, 0)); err != nil {
		t.Fatal(err)
	}
	take("after a change")
	if err := p.Refill(t.Context()); err != nil {
		t.Fatal(err)
	}
	take("refilled")

	// A disk that is there is kept, and so is the ready clone.
	if err := p.Refill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Take(t.Context(), filepath.Join(dir, "cold")); !errors.Is(err, mvm.ErrExists) {
		t.Errorf("taking over a disk: %v", err)
	}
	if err := errors.Join(p.Drop(), p.Drop()); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"after a change", "base", "cold", "refilled", "warm"}, names(t, dir)); d != "" {
		t.Error(d)
	}
}

func TestPoolTakers(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	sparse(t, base, 1<<20, 0)
	p := Pool{Base: base}
	for range 20 {
		var wg sync.WaitGroup
		disks := make([]string, 4)
		for i := range disks {
			disks[i] = filepath.Join(dir, "disk", string(rune('a'+i)))
		}
		if err := os.Mkdir(filepath.Join(dir, "disk"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, d := range disks {
			wg.Go(func() {
				if err := errors.Join(p.Refill(t.Context()), p.Take(t.Context(), d)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i, d := range disks {
			sameContent(t, base, d)
			st, err := os.Stat(d)
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range disks[:i] {
				if o, err := os.Stat(other); err != nil || os.SameFile(st, o) {
					t.Errorf("two takers have one file, or %v", err)
				}
			}
		}
		if err := os.RemoveAll(filepath.Join(dir, "disk")); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkCloneWarm is what a create pays for a raw disk of 1 GiB.
func BenchmarkCloneWarm(b *testing.B) {
	dir := b.TempDir()
	base := filepath.Join(dir, "base")
	if err := errors.Join(os.WriteFile(base, make([]byte, 16<<20), 0o600), os.Truncate(base, 1<<30)); err != nil {
		b.Fatal(err)
	}
	p := Pool{Base: base}
	for b.Loop() {
		b.StopTimer()
		_ = os.Remove(filepath.Join(dir, "dst"))
		if err := p.Refill(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := p.Take(b.Context(), filepath.Join(dir, "dst")); err != nil {
			b.Fatal(err)
		}
	}
}
