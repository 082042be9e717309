package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// smallDisk mounts a tmpfs of that many KiB.
func smallDisk(t *testing.T, kib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
		t.Skipf("root: a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillUp leaves no space on the disk.
func fillUp(t *testing.T, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	must(t, err)
	for size := 1 << 16; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	_ = f.Close()
	return file
}

func TestOpenOnFullDisk(t *testing.T) {
	dir := smallDisk(t, 384)
	filler := fillUp(t, dir)
	path := filepath.Join(dir, "mvm.db")
	_, err := store.Open(t.Context(), path)
	wantError(t, err, mvm.ErrUnavailable, "is full")
	must(t, os.Remove(filler))
	openAt(t, path) // what the failure left is no obstacle
}

func TestWriteOnFullDisk(t *testing.T) {
	dir := smallDisk(t, 1024)
	st := openAt(t, filepath.Join(dir, "mvm.db"))
	must(t, st.SetHostState(t.Context(), "small", 1))
	filler := fillUp(t, dir)
	big := strings.Repeat("x", 256<<10)
	write := func() error {
		return st.Tx(t.Context(), func(tx *store.Tx) error { return tx.SetHostState(tx.Context(), "big", big) })
	}
	for range 3 { // a failed transaction does not stay open
		wantError(t, write(), mvm.ErrUnavailable, "is full")
	}
	var n int
	if ok, err := st.GetHostState(t.Context(), "small", &n); !ok || n != 1 || err != nil {
		t.Errorf("%d %v %v", n, ok, err)
	}
	must(t, os.Remove(filler))
	must(t, write())
}
