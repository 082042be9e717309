package disk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// inMemory is a directory in a tmpfs, which may become a Memory's.
func inMemory(t *testing.T) string {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skip("there is no tmpfs at /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "mvm-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "memory")
}

func TestMemory(t *testing.T) {
	m := Memory{inMemory(t)}
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	sparse(t, base, 4<<20, 0, 1<<20)
	if got := m.Find("a", base); got != "" {
		t.Errorf("before it is kept there is %s", got)
	}
	for range 2 {
		if err := m.Keep(t.Context(), "a", base); err != nil {
			t.Fatal(err)
		}
	}
	got := m.Find("a", base)
	if got == "" {
		t.Fatal("nothing is kept")
	}
	sameContent(t, base, got)
	if _, allocated, err := Sizes(got); err != nil || allocated >= 4<<20 {
		t.Errorf("%d bytes are taken, %v", allocated, err)
	}

	// A base of another state: the old copy does not count, and is replaced.
	sparse(t, base, 4<<20, 2<<20)
	if got := m.Find("a", base); got != "" {
		t.Errorf("a stale copy is found: %s", got)
	}
	if err := m.Keep(t.Context(), "a", base); err != nil {
		t.Fatal(err)
	}
	sameContent(t, base, m.Find("a", base))
	if err := errors.Join(m.Drop("b"), m.Drop("a"), m.Drop("a"), m.Clear()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(m.Dir); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}

// What others have put there is neither read nor written nor removed.
func TestMemoryOfOthers(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	sparse(t, base, 1<<20, 0)
	for name, plant := range map[string]func(dir string) error{
		"open to all": func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) },
		"a link":      func(dir string) error { return errors.Join(os.Mkdir(dir+"-real", 0o700), os.Symlink(dir+"-real", dir)) },
		"a file":      func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
	} {
		m := Memory{inMemory(t)}
		if err := plant(m.Dir); err != nil {
			t.Fatal(err)
		}
		if err := m.Keep(t.Context(), "a", base); err == nil || mvm.HintOf(err) == "" {
			t.Errorf("%s: kept, %v", name, err)
		}
		if err := errors.Join(m.Drop("a"), m.Clear()); err != nil || m.Find("a", base) != "" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(m.Dir); err != nil {
			t.Errorf("%s: it was removed: %v", name, err)
		}
	}
	if err := (Memory{"/proc/memory"}).Keep(t.Context(), "a", base); !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" {
		t.Errorf("no tmpfs: %v", err)
	}
}

// A pool reads from the copy where it cannot share blocks, and from the base where the
// copy is gone.
func TestPoolByCopy(t *testing.T) {
	dir := t.TempDir()
	base, quick := filepath.Join(dir, "base"), filepath.Join(dir, "quick")
	sparse(t, base, 4<<20, 0)
	sparse(t, quick, 4<<20, 2<<20) // another content tells which was read
	shared := filepath.Join(dir, "shared")
	if err := os.WriteFile(shared, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(shared, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	want := quick
	if unix.IoctlFileClone(int(f.Fd()), int(b.Fd())) == nil {
		want = base
	}
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	if err := (Pool{Base: base, Copy: quick}).Take(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	sameContent(t, want, one)
	if err := (Pool{Base: base, Copy: filepath.Join(dir, "gone")}).Take(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	sameContent(t, base, two)
}
