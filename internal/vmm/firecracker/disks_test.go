package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

func TestDiskName(t *testing.T) {
	for path, want := range map[string]string{
		"/c/vms/a/rootfs.raw": "rootfs.raw", "/c/vms/a/sub/d": "sub/d", "/c/vms/a/../b/d": "disk-vol_1",
		"/c/vms/ab/d": "disk-vol_1", "/c/volumes/v.raw": "disk-vol_1", "/c/vms/a/..d": "..d",
	} {
		if got := diskName("/c/vms/a", vmm.Disk{ID: "vol-1", Path: path}); got != want {
			t.Errorf("the name of %s is %q, want %q", path, got, want)
		}
	}
}

func TestLinkDisk(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	inside := vmm.Disk{ID: "rootfs", Path: filepath.Join(dir, "rootfs.raw")}
	outside := vmm.Disk{ID: "vol-1", Path: filepath.Join(other, "v.raw")}
	link := filepath.Join(dir, "disk-vol_1")
	if err := os.Symlink("/nonexistent", link); err != nil { // of an earlier run
		t.Fatal(err)
	}
	for range 2 {
		if err := errors.Join(linkDisk(dir, inside), linkDisk(dir, outside)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.Readlink(link); got != outside.Path {
		t.Errorf("the link leads to %q, %v", got, err)
	}
	for range 2 {
		if err := errors.Join(unlinkDisk(dir, inside), unlinkDisk(dir, outside)); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(link, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := linkDisk(dir, outside); !errors.Is(err, mvm.ErrExists) || mvm.HintOf(err) == "" {
		t.Errorf("a file in the way: %v", err)
	}
	_ = unlinkDisk(dir, outside)
	if data, err := os.ReadFile(link); string(data) != "precious" {
		t.Errorf("the file in the way has %q, %v", data, err)
	}
	if left, err := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%v, %v are left", left, err)
	}
}
