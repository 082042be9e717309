package store

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"

	"github.com/mvmctl/mvm"
)

// Primary result codes of SQLite (sqlite.org/rescode.html).
const (
	codeBusy       = 5
	codeLocked     = 6
	codeReadOnly   = 8
	codeInterrupt  = 9
	codeIO         = 10
	codeCorrupt    = 11
	codeFull       = 13
	codeCantOpen   = 14
	codeConstraint = 19
	codeNotADB     = 26
)

// Extended result codes of constraints.
const (
	codeCheck      = codeConstraint | 1<<8
	codeForeignKey = codeConstraint | 3<<8
	codePrimaryKey = codeConstraint | 6<<8
	codeUnique     = codeConstraint | 8<<8
)

// lowSpace is the free space under which an I/O error is put down to a full disk:
// SQLite reports some writes that found no space as plain I/O errors.
const lowSpace = 256 << 10

// fail gives an error of the database a kind and a hint. Errors that have a
// kind already pass as they are.
func (q Queries) fail(err error) error { return classify(err, q.path) }

// openError is fail for errors that come up before there is a database.
func openError(err error, path string) error {
	err = classify(err, path)
	var e *mvm.Error
	if !errors.As(err, &e) {
		return err
	}
	if e.Op == "" {
		e.Op, e.Subject = "open the database", path
	}
	if e.Hint == "" {
		e.Hint = "set MVM_CACHE_DIR to a directory that can be made and written"
	}
	return err
}

func classify(err error, path string) error {
	var known *mvm.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	var se *sqlite.Error
	if errors.As(err, &se) {
		return classifySQLite(err, se.Code(), path)
	}
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return mvm.Errorf(mvm.ErrUnavailable, "%w", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return unwritable(err, dir)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return full(err, dir)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		return mvm.Errorf(mvm.ErrInvalid, "%w", err).WithHint("set MVM_CACHE_DIR to a directory")
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%w", err)
}

func classifySQLite(err error, code int, path string) error {
	dir := filepath.Dir(path)
	switch code & 0xff {
	case codeBusy, codeLocked:
		return mvm.Errorf(mvm.ErrBusy, "the database %s is held by another process for longer than %s: %w", path, busyTimeout, err).
			WithHint("try again; 'fuser -v %s' shows who holds it", path)
	case codeInterrupt: // only ever by a context that ended
		return mvm.Errorf(mvm.ErrUnavailable, "interrupted: %w", context.Canceled)
	case codeReadOnly:
		return unwritable(err, dir)
	case codeFull:
		return full(err, dir)
	case codeIO:
		if freeSpace(dir) < lowSpace {
			return full(err, dir)
		}
		return mvm.Errorf(mvm.ErrUnavailable, "the database %s cannot be read or written: %w", path, err).
			WithHint("look for errors of the disk in 'dmesg'")
	case codeCantOpen:
		if freeSpace(dir) < lowSpace {
			return full(err, dir)
		}
		return unwritable(err, dir)
	case codeCorrupt, codeNotADB:
		return mvm.Errorf(mvm.ErrBroken, "the database %s is damaged: %w", path, err).
			WithHint("restore it from a backup, or stop all VMs, move it away and run 'mvm init'")
	case codeConstraint:
		switch code {
		case codeCheck:
			return mvm.Errorf(mvm.ErrInvalid, "the database refuses the value: %w", err)
		case codeForeignKey:
			return mvm.Errorf(mvm.ErrConflict, "something that it belongs to is gone, or something still belongs to it").
				WithHint("list the objects again, another command may have removed one")
		}
		return mvm.Errorf(mvm.ErrExists, "%w", err)
	}
	return mvm.Errorf(mvm.ErrUnavailable, "database %s: %w", path, err)
}

func unwritable(err error, dir string) error {
	return mvm.Errorf(mvm.ErrPrivilege, "the directory %s cannot be written: %w", dir, err).
		WithHint("make it writable for you, or set MVM_CACHE_DIR to a directory that is")
}

func full(err error, dir string) error {
	return mvm.Errorf(mvm.ErrUnavailable, "the disk that holds %s is full: %w", dir, err).
		WithHint("free some space there, or set MVM_CACHE_DIR to a directory on another disk")
}

// freeSpace returns the bytes that may be written where dir is, or a large
// number when that cannot be found out.
func freeSpace(dir string) uint64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 1 << 62
	}
	return st.Bavail * uint64(st.Bsize)
}

// violated returns the columns of a uniqueness constraint that err says was
// violated, as SQLite names them: "vms.name" or "leases.network_id, leases.ipv4".
func violated(err error) string {
	var se *sqlite.Error
	if !errors.As(err, &se) || se.Code() != codeUnique && se.Code() != codePrimaryKey {
		return ""
	}
	_, cols, _ := strings.Cut(se.Error(), "UNIQUE constraint failed: ")
	cols, _, _ = strings.Cut(cols, " (")
	return cols
}
