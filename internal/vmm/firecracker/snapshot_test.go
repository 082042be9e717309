package firecracker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// A file gets its place on the same file system and on another one, and never the
// place of another file.
func TestPlace(t *testing.T) {
	for where, dir := range map[string]string{"here": t.TempDir(), "elsewhere": otherDisk(t)} {
		if dir == "" {
			t.Logf("not checked, there is no other file system: %s", where)
			continue
		}
		from, to := filepath.Join(t.TempDir(), "mem"), filepath.Join(dir, "mem")
		write := func() {
			if err := os.WriteFile(from, []byte("memory"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := place(ctx, from, to); where == "elsewhere" && (!errors.Is(err, context.Canceled) || exists(to)) {
			t.Errorf("%s, cancelled: %v, %v is left", where, err, exists(to))
		}
		_ = os.Remove(to)
		write()
		if err := place(t.Context(), from, to); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if fi, err := os.Stat(to); err != nil || fi.Mode() != 0o600 || fi.Size() != 6 {
			t.Errorf("%s: %v, %v", where, fi, err)
		}
		write()
		if err := place(t.Context(), from, to); !errors.Is(err, mvm.ErrExists) || mvm.HintOf(err) == "" {
			t.Errorf("%s, where a file is: %v", where, err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// otherDisk returns a directory on another file system than temporary ones, or "".
func otherDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "mvm-test-*")
	if err != nil {
		return ""
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var a, b unix.Stat_t
	if unix.Stat(dir, &a) != nil || unix.Stat(t.TempDir(), &b) != nil || a.Dev == b.Dev {
		return ""
	}
	return dir
}

// A VMM that may not write files as large as the memory is not asked to: that would
// end it.
func TestSnapshotBeyondTheLimit(t *testing.T) {
	b := fakeBench(t)
	v := b.start(t, b.launch(t))
	limit := unix.Rlimit{Cur: 1 << 20, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(v.Handle().VMM.PID, unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	if err := v.Machine.(vmm.Pauser).Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err := v.Machine.(vmm.Snapshotter).Snapshot(t.Context(), vmm.SnapshotFiles{State: filepath.Join(dir, "s"), Mem: filepath.Join(dir, "m")})
	if !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("got %v (hint %q)", err, mvm.HintOf(err))
	}
	v.wantState(t, vmm.StatePaused)
}
