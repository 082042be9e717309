// Package disk makes and reads the files that guests have as disks: clones and
// overlays of base images and volumes, their sizes, formats and file systems. It
// writes whole files only and never into a file system. Child processes are started
// for volumes alone: to make file systems, and to resize and describe qcow2 files.
//
// It must not know what an image is for, where it came from or who uses it.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// The formats of disk files.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
)

// Grow makes a raw disk file size bytes long; the new end is a hole. A file of
// that size already is left alone. It refuses to shrink a file, and one that is
// no raw disk, with mvm.ErrInvalid.
func Grow(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fault(err, "grow disk", path, 0)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return fault(err, "grow disk", path, 0)
	}
	format, err := detect(f)
	switch {
	case err != nil:
		return fault(err, "grow disk", path, 0)
	case format != Raw:
		return mvm.Errorf(mvm.ErrInvalid, "it is in format %s", format).On("grow disk", path).
			WithHint("only raw disks are grown by their length")
	case st.Size() > size:
		return mvm.Errorf(mvm.ErrInvalid, "it has %s already, more than %s", human(st.Size()), human(size)).On("grow disk", path).
			WithHint("ask for %s or more", human(st.Size()))
	case st.Size() == size:
		return nil
	}
	return fault(f.Truncate(size), "grow disk", path, 0)
}

// Sizes returns how many bytes a guest sees, and how many the file takes on the
// host. Raw and qcow2 are known.
func Sizes(path string) (virtual, allocated int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, fault(err, "read disk", path, 0)
	}
	defer func() { _ = f.Close() }()
	virtual, err = virtualSize(f)
	if err != nil {
		return 0, 0, fault(err, "read disk", path, 0)
	}
	st, err := f.Stat()
	if err != nil {
		return 0, 0, fault(err, "read disk", path, 0)
	}
	return virtual, allocatedBytes(st), nil
}

// Format tells qcow2 from raw by the file's first bytes. It is meant for files
// that the user hands in, once: a guest can write a qcow2 header into its raw
// disk, so the format of a disk in use is what was recorded when it was made.
func Format(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fault(err, "read disk", path, 0)
	}
	defer func() { _ = f.Close() }()
	format, err := detect(f)
	return format, fault(err, "read disk", path, 0)
}

// EnoughSpace returns mvm.ErrUnavailable when the file system of dir has less
// than so many bytes free for us. It is a warning ahead, not a reservation.
func EnoughSpace(dir string, bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fault(&fs.PathError{Op: "statfs", Path: dir, Err: err}, "check free space of", dir, 0)
	}
	free := int64(st.Bavail) * st.Bsize
	if free >= bytes {
		return nil
	}
	return full(bytes, free).On("write to", dir).WithHint(freeSpaceHint, dir)
}

const freeSpaceHint = "make room on the file system of %s, for example by removing images or VMs that are not needed"

func full(need, free int64) *mvm.Error {
	return mvm.Errorf(mvm.ErrUnavailable, "disk full: %s needed, %s free: %w", human(need), human(free), syscall.ENOSPC)
}

// fault gives an error of the file system its kind and hint. need is how many
// bytes were about to be written, 0 when that says nothing.
func fault(err error, op, path string, need int64) error {
	var e *mvm.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return mvm.Wrap(err, op, path)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		dir := filepath.Dir(path)
		var st unix.Statfs_t
		_ = unix.Statfs(dir, &st) // zero free bytes is true enough
		return full(need, int64(st.Bavail)*st.Bsize).On(op, path).WithHint(freeSpaceHint, dir)
	case errors.Is(err, fs.ErrNotExist):
		return (&mvm.Error{Kind: mvm.ErrNotFound, Err: err}).On(op, path).WithHint("check the path")
	case errors.Is(err, fs.ErrPermission):
		return (&mvm.Error{Kind: mvm.ErrPrivilege, Err: err}).On(op, path).WithHint("check the owner and mode of %s", path)
	}
	return (&mvm.Error{Kind: mvm.ErrUnavailable, Err: err}).On(op, path)
}

// human writes a size in bytes for a person.
func human(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// allocatedBytes is what a file takes on its file system; stat(2) counts blocks
// of 512 bytes whatever the file system's own are.
func allocatedBytes(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}
