package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// Create makes the file dst with mode 0600 and what fill writes, whole or not at
// all, also for a process that is killed meanwhile. One that is there is kept:
// mvm.ErrExists.
func Create(dst string, fill func(*os.File) error) error {
	return fault(create(dst, fill), "write", dst, 0)
}

// create makes the file dst with mode 0600 and whatever fill writes, whole or
// not at all. The file has no name until it is complete where the file system
// can do that, so that a process killed in between leaves nothing. A dst that
// exists is never replaced: mvm.ErrExists.
func create(dst string, fill func(*os.File) error) error {
	if _, err := os.Lstat(dst); err == nil {
		return exists(dst)
	}
	f, err := os.OpenFile(filepath.Dir(dst), unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return createNamed(dst, fill)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := fill(f); err != nil {
		return err
	}
	// open(2), O_TMPFILE: a file without a name gets one by its /proc link.
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, dst, unix.AT_SYMLINK_FOLLOW)
	switch {
	case errors.Is(err, unix.EEXIST):
		return exists(dst)
	case err != nil:
		return &fs.PathError{Op: "linkat", Path: dst, Err: err}
	}
	return nil
}

// createNamed is create for file systems without O_TMPFILE (NFS, 9p, overlayfs
// before Linux 6.3).
func createNamed(dst string, fill func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(dst), "."+filepath.Base(dst)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if err := errors.Join(fill(f), f.Close()); err != nil {
		return err
	}
	err = os.Link(f.Name(), dst) // unlike a rename it does not replace
	if errors.Is(err, fs.ErrExist) {
		return exists(dst)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) { // no hard links there
		return os.Rename(f.Name(), dst)
	}
	return err
}

func exists(dst string) error {
	return mvm.Errorf(mvm.ErrExists, "%s is there already", dst).WithHint("remove it first if it is not needed")
}
