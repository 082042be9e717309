package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// Pool keeps one clone of a base image ready, as BASE.warm, for file systems
// that cannot share blocks: taking it is one rename. All its state is that
// file, so nothing has to be put right after a crash. Processes may use it at
// the same time.
type Pool struct {
	Base string // the image, which is never written
	Copy string // of it that is quicker to read, "" for none; blocks are shared with Base, where they can be
}

func (p Pool) warm() string { return p.Base + ".warm" }

// Take makes dst a clone of the base: the ready one, if there is one that fits
// the base as it is now, or else a copy made on the spot. Of two takers one
// gets the ready one. Errors are those of Clone.
func (p Pool) Take(ctx context.Context, dst string) error {
	if p.fits() {
		// RENAME_NOREPLACE: a disk that is there already is never overwritten.
		err := unix.Renameat2(unix.AT_FDCWD, p.warm(), unix.AT_FDCWD, dst, unix.RENAME_NOREPLACE)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EEXIST):
			return fault(exists(dst), "clone disk", dst, 0)
		}
		// Taken meanwhile, another file system, or one without the flag: copy.
	}
	return cloneBy(ctx, p.Base, p.Copy, dst, nil)
}

// Refill makes a clone ready if there is none that fits the base. It copies:
// call it when nobody waits.
func (p Pool) Refill(ctx context.Context) error {
	if p.fits() {
		return nil
	}
	if err := p.Drop(); err != nil {
		return err
	}
	err := cloneBy(ctx, p.Base, p.Copy, p.warm(), sameTime(p.Base))
	if errors.Is(err, mvm.ErrExists) {
		return nil // somebody else refilled it
	}
	return err
}

// Drop removes the ready clone, if there is one.
func (p Pool) Drop() error {
	if err := os.Remove(p.warm()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault(err, "remove disk", p.warm(), 0)
	}
	return nil
}

// Ready reports whether the next taker waits for no copy.
func (p Pool) Ready() bool { return p.fits() }

// fits reports whether there is a ready clone of the base as it is now.
func (p Pool) fits() bool { return fitsBase(p.warm(), p.Base) }

// sameTime gives a file the time of the base, which marks of what state of that it was
// made. It is set before the file has a name.
func sameTime(base string) func(*os.File) error {
	st, err := os.Stat(base)
	return func(f *os.File) error {
		if err != nil {
			return err
		}
		t := unix.NsecToTimespec(st.ModTime().UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), []unix.Timespec{t, t}, 0)
	}
}

// fitsBase tells whether a file was made of the base as it is now.
func fitsBase(file, base string) bool {
	b, err := os.Stat(base)
	if err != nil {
		return false
	}
	st, err := os.Lstat(file)
	return err == nil && st.Mode().IsRegular() && st.Size() == b.Size() && st.ModTime().Equal(b.ModTime())
}
