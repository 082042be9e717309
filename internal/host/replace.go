package host

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm/internal/fsx"
)

// temp is where a file is written before it takes its name. It is always the same, so
// that what a killed process left is found again; programs that read all files of a
// directory (sudo, sysctl, systemd) pass over names that begin with a dot.
func temp(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".mvm-new")
}

// clear removes what a killed Apply may have left.
func (m Machine) clear(s Setting) error {
	switch s.Kind {
	case File, Program, Symlink:
		return remove(temp(m.path(s.Name)))
	case Group:
		return errors.Join(remove(temp(m.path(groupFile))), remove(temp(m.path(gshadowFile))))
	}
	return nil
}

// replace puts a file in place as a whole, with mode and owner.
func replace(path string, data io.Reader, mode fs.FileMode, uid, gid int) error {
	tmp := temp(path)
	if err := remove(tmp); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = remove(tmp) }() // gone already when all went well
	_, err = io.Copy(f, data)
	if err := errors.Join(err, f.Chown(uid, gid), f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func removeSynced(path string) error {
	if err := remove(path); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(dir string) error { return fsx.SyncDir(dir) }
