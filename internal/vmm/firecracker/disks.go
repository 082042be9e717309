package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// diskName is what Firecracker is told of a disk: a name relative to the VM's
// directory, its working directory, because a snapshot keeps the name and is to be
// loaded in another VM's directory. A disk elsewhere goes by a symlink.
func diskName(dir string, d vmm.Disk) string {
	if rel, err := filepath.Rel(dir, d.Path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return linkName(d)
}

// linkPrefix begins the names of the symlinks to disks outside the VM's directory.
const linkPrefix = "disk-"

func linkName(d vmm.Disk) string { return linkPrefix + deviceID(d.ID) }

// linkDisk makes the symlink of a disk outside the VM's directory, in place of one
// of an earlier run. What is no symlink is nothing of ours.
func linkDisk(dir string, d vmm.Disk) error {
	path := filepath.Join(dir, diskName(dir, d))
	if path == filepath.Clean(d.Path) {
		return nil
	}
	if err := removeLink(path); err != nil {
		return err
	}
	if err := os.Symlink(d.Path, path); err != nil {
		return fmt.Errorf("link the disk %s: %w", d.ID, err)
	}
	return nil
}

// unlinkDisk undoes linkDisk. The disk itself stays.
func unlinkDisk(dir string, d vmm.Disk) error {
	path := filepath.Join(dir, diskName(dir, d))
	if path == filepath.Clean(d.Path) {
		return nil
	}
	return removeLink(path)
}

// removeLink removes a symlink; a path where there is none is fine.
func removeLink(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSymlink:
		return mvm.Errorf(mvm.ErrExists, "%s is in the way of a disk's link", path).WithHint("move that file away")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
