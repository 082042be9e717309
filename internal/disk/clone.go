package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// Clone makes dst a copy of the file src with mode 0600. Where the file system
// shares blocks (FICLONE: btrfs, XFS) that takes milliseconds, elsewhere the
// data is copied and holes stay holes. dst appears when it is complete; an
// interrupted clone leaves nothing.
//
// Errors: mvm.ErrExists when dst is there, mvm.ErrUnavailable when the disk is
// full, mvm.ErrNotFound without src, ctx's own error when it ends.
func Clone(ctx context.Context, src, dst string) error { return cloneFile(ctx, src, dst, nil) }

// cloneFile is Clone; finish, if it is not nil, gets the file when it is complete
// and has no name yet.
func cloneFile(ctx context.Context, src, dst string, finish func(*os.File) error) error {
	return cloneBy(ctx, src, "", dst, finish)
}

// cloneBy is cloneFile that reads from quicker, which has the same content as src, where
// it has to copy; "" is src. One that cannot be opened is passed over.
func cloneBy(ctx context.Context, src, quicker, dst string, finish func(*os.File) error) error {
	in, err := os.Open(src)
	if err != nil {
		return fault(err, "clone disk", src, 0)
	}
	defer func() { _ = in.Close() }()
	st, err := in.Stat()
	if err != nil {
		return fault(err, "clone disk", src, 0)
	}
	if !st.Mode().IsRegular() {
		return mvm.Errorf(mvm.ErrInvalid, "it is no regular file").On("clone disk", src).WithHint("name an image file")
	}
	from := in
	if quicker != "" {
		if f, err := os.OpenFile(quicker, os.O_RDONLY|unix.O_NOFOLLOW, 0); err == nil {
			defer func() { _ = f.Close() }()
			from = f
		}
	}
	err = create(dst, func(out *os.File) error {
		if err := cloneOrCopy(ctx, out, in, from, st, filepath.Dir(dst)); err != nil || finish == nil {
			return err
		}
		return finish(out)
	})
	if ctx.Err() != nil && err != nil {
		return fmt.Errorf("cloning %s was interrupted: %w", src, ctx.Err())
	}
	return fault(err, "clone disk", dst, allocatedBytes(st))
}

func cloneOrCopy(ctx context.Context, out, in, from *os.File, st fs.FileInfo, dir string) error {
	err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	if err == nil || errors.Is(err, unix.ENOSPC) {
		return err
	}
	if err := EnoughSpace(dir, allocatedBytes(st)); err != nil {
		return err
	}
	return copySparse(ctx, out, from, st.Size())
}

// chunk is how much is copied between two looks at the context: about a tenth
// of a second.
const chunk = 32 << 20

// copySparse copies the size bytes of in and leaves holes out.
func copySparse(ctx context.Context, out, in *os.File, size int64) error {
	if err := out.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		data, hole, err := extent(in, off, size)
		if err != nil {
			return err
		}
		for data < hole {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := copyRange(out, in, data, min(hole-data, chunk))
			if err != nil {
				return err
			}
			if n == 0 {
				return mvm.Errorf(mvm.ErrUnavailable, "it became shorter while it was copied").WithHint("try again when nobody writes to it")
			}
			data += n
		}
		off = hole
	}
	return nil
}

// extent returns the next piece of data at or behind off; both are size when
// there is none. A file system that cannot tell (EINVAL) has data only.
func extent(f *os.File, off, size int64) (data, hole int64, err error) {
	data, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		return off, size, nil
	case err != nil:
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	hole, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	return min(data, size), min(hole, size), nil
}

// copyRange copies up to n bytes at off, in the kernel where it can.
func copyRange(out, in *os.File, off, n int64) (int64, error) {
	from, to := off, off
	done, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(n), 0)
	switch {
	case err == nil:
		return int64(done), nil
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM):
		return io.Copy(io.NewOffsetWriter(out, off), io.NewSectionReader(in, off, n))
	case errors.Is(err, unix.EINTR):
		return copyRange(out, in, off, n)
	}
	return 0, os.NewSyscallError("copy_file_range", err)
}
