package op

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// owner is the hold on an operation: its lock, which dies with the process. Of
// an operation that has a row, the lock is held, or the owner is dead: the lock
// is taken before the row is written, and its file removed after the row.
type owner struct {
	id   string
	path string
	lock *fsx.Lock
}

const lockSuffix = ".lock"

func (j *Journal) lockPath(id string) string { return filepath.Join(j.dir, id+lockSuffix) }

// newOwner makes an operation's id and takes its lock.
func (j *Journal) newOwner() (*owner, error) {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, lockError(err, j.dir)
	}
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		o, err := j.takeOver(hex.EncodeToString(b[:]))
		if errors.Is(err, fsx.ErrLocked) {
			continue // an orphan hunt has seen the file before it was locked
		}
		if err != nil {
			return nil, lockError(err, j.dir)
		}
		return o, nil
	}
}

// takeOver takes the lock of an operation. It fails with fsx.ErrLocked when the
// owner lives, or when the file was removed meanwhile, as a lock on a removed
// file keeps nobody out.
func (j *Journal) takeOver(id string) (*owner, error) {
	path := j.lockPath(id)
	l, err := fsx.TryLock(path)
	if err != nil {
		return nil, err
	}
	var held, named unix.Stat_t
	err = unix.Fstat(int(l.File().Fd()), &held)
	if err == nil {
		err = unix.Stat(path, &named)
	}
	if err == nil && held.Ino == named.Ino && held.Dev == named.Dev {
		return &owner{id, path, l}, nil
	}
	l.Unlock()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, fsx.ErrLocked
}

// alive reports whether the owner of an operation is.
func (j *Journal) alive(id string) (bool, error) {
	l, err := fsx.TryLock(j.lockPath(id))
	if errors.Is(err, fsx.ErrLocked) {
		return true, nil
	}
	l.Unlock()
	return false, err
}

// release lets go of an operation; gone says that its row is no more.
func (o *owner) release(gone bool) {
	if gone {
		_ = os.Remove(o.path) // else the next Recover does
	}
	o.lock.Unlock()
}

// removeOrphans removes the lock files that belong to no operation: those of
// owners that died before their row was written or after it was dropped.
func (j *Journal) removeOrphans(known map[string]bool) error {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return lockError(err, j.dir)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), lockSuffix)
		if !ok || known[id] {
			continue
		}
		o, err := j.takeOver(id)
		if err != nil {
			continue // its owner lives, or somebody else cleans up
		}
		o.release(!j.hasRow(id))
	}
	return nil
}

func lockError(err error, dir string) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return mvm.Errorf(mvm.ErrPrivilege, "the directory %s cannot be written: %w", dir, err).
			WithHint("make it writable for you, or set MVM_CACHE_DIR to a directory that is")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return mvm.Errorf(mvm.ErrUnavailable, "the disk that holds %s is full: %w", dir, err).
			WithHint("free some space there")
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%w", err)
}
