// Package fsx holds the file-system moves that have to be right: replacing a
// file whole, locks that the kernel releases, unix sockets at paths of any
// length, directories that are watched. It knows nothing of VMs.
package fsx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteFile replaces path by data as a whole: a reader, and the next boot, see
// the old content or the new one. The file gets exactly the mode perm.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	if err := replace(path, data, perm, (*os.File).Sync); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SwapFile is WriteFile for what is made anew after a reboot: readers see the old
// content or the new one, but the disk is not waited for.
func SwapFile(path string, data []byte, perm fs.FileMode) error {
	return replace(path, data, perm, func(*os.File) error { return nil })
}

func replace(path string, data []byte, perm fs.FileMode, sync func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already when all went well
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(perm), sync(f), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ErrLocked says that somebody else holds a lock.
var ErrLocked = errors.New("locked by another process")

// Lock is a lock on a file that the kernel releases when its holder dies.
type Lock struct{ f *os.File }

// TryLock takes the lock or returns ErrLocked at once. The file is made if it
// is missing, and left behind.
func TryLock(path string) (*Lock, error) { return lock(path, unix.LOCK_EX|unix.LOCK_NB) }

// LockWait waits for the lock until ctx ends.
func LockWait(ctx context.Context, path string) (*Lock, error) {
	done := make(chan struct{})
	var l *Lock
	var err error
	go func() { l, err = lock(path, unix.LOCK_EX); close(done) }()
	select {
	case <-done:
		return l, err
	case <-ctx.Done():
		go func() { // the waiter ends when the holder does
			if <-done; err == nil {
				l.Unlock()
			}
		}()
		return nil, ctx.Err()
	}
}

func lock(path string, how int) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Lock{f}, nil
}

// Unlock releases the lock. Unlocking a nil Lock does nothing.
func (l *Lock) Unlock() {
	if l != nil {
		_ = l.f.Close()
	}
}

// File returns the locked file, to be inherited by a child that then holds the
// lock too.
func (l *Lock) File() *os.File { return l.f }

// maxSunPath is how long a unix socket's path may be, without the final zero
// (unix(7): sun_path has 108 bytes).
const maxSunPath = 107

// DialUnix connects to a unix socket at a path of any length. What is at the end
// of the path has to be the socket itself: a symlink there, which whoever owns the
// directory could point anywhere, is refused.
func DialUnix(ctx context.Context, path string) (net.Conn, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "dial", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "dial", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, &fs.PathError{Op: "dial", Path: path, Err: unix.ENOTSOCK}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	var refused *net.OpError
	if errors.As(err, &refused) { // it would name the descriptor
		return nil, &fs.PathError{Op: "dial", Path: path, Err: refused.Err}
	}
	return conn, err
}

// ListenUnix listens on a unix socket at a path of any length with mode 0600,
// replacing a socket that a dead process left.
func ListenUnix(path string) (net.Listener, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("listen on %s: %w: it is no socket", path, fs.ErrExist)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	short := path
	if len(path) > maxSunPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer func() { _ = dir.Close() }()
		short = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // short may not name it any more; the directory's owner removes it
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(path))
	}
	return l, nil
}
