package disk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// Memory keeps copies of images in a directory of ours in a tmpfs, where reading them
// never waits for a disk. A reboot takes them away; whoever finds none goes on with the
// image. Others may write beside the directory, so it counts only if it is ours alone.
type Memory struct {
	Dir string
}

func (m Memory) path(name string) string { return filepath.Join(m.Dir, name) }

// ours says why the directory cannot be trusted; fs.ErrNotExist where it is not there.
func (m Memory) ours() error {
	st, err := os.Lstat(m.Dir)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || st.Mode().Perm() != 0o700 || !ok || int(sys.Uid) != os.Geteuid() {
		return mvm.Errorf(mvm.ErrConflict, "%s is there, and is not a directory of ours alone", m.Dir).WithHint("remove it")
	}
	return nil
}

// Keep has a copy of an image, which replaces one of another state of it. Room in the
// tmpfs is what limits it; the caller knows how much memory there is.
func (m Memory) Keep(ctx context.Context, name, base string) error {
	for again := true; ; again = false {
		if err := m.make(); err != nil {
			return err
		}
		if m.Find(name, base) != "" {
			return nil
		}
		if err := m.remove(name); err != nil {
			return err
		}
		err := cloneFile(ctx, base, m.path(name), sameTime(base))
		if _, gone := os.Lstat(m.Dir); again && errors.Is(gone, fs.ErrNotExist) {
			continue // another command dropped the last copy meanwhile
		}
		if errors.Is(err, mvm.ErrExists) {
			return nil // somebody else made it
		}
		return err
	}
}

// make makes the directory.
func (m Memory) make() error {
	parent := filepath.Dir(m.Dir)
	var st unix.Statfs_t
	if err := unix.Statfs(parent, &st); err != nil {
		return fault(&fs.PathError{Op: "statfs", Path: parent, Err: err}, "copy into memory", m.Dir, 0)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return mvm.Errorf(mvm.ErrUnsupported, "%s is no tmpfs", parent).WithHint("mount a tmpfs there")
	}
	err := m.ours()
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(m.Dir, 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			err = m.ours()
		}
	}
	return fault(err, "copy into memory", m.Dir, 0)
}

// Find returns the copy of an image as it is now, or "".
func (m Memory) Find(name, base string) string {
	if m.ours() != nil || !fitsBase(m.path(name), base) {
		return ""
	}
	return m.path(name)
}

// Drop removes the copy of an image, if there is one, and the directory with the last.
func (m Memory) Drop(name string) error {
	if m.ours() != nil {
		return nil // there is none that is ours
	}
	err := m.remove(name)
	_ = os.Remove(m.Dir) // unless there are others
	return err
}

func (m Memory) remove(name string) error {
	if err := os.Remove(m.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault(err, "remove", m.path(name), 0)
	}
	return nil
}

// Clear removes all copies.
func (m Memory) Clear() error {
	if m.ours() != nil {
		return nil
	}
	return fault(os.RemoveAll(m.Dir), "remove", m.Dir, 0)
}
