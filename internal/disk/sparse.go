package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

const (
	copyBuffer = 1 << 20
	page       = 4096 // the grain of holes
	// reserve stays free on a file system that a stream of unknown length is
	// written to, so that it is we who stop, and not every other program there.
	reserve    = 256 << 20
	spaceEvery = 64 << 20 // written bytes between two looks at the free space
)

var zeros [page]byte

// WriteSparse writes what r has to the new file f, from its beginning on, and
// leaves out pages of zeros, which become holes. It returns how long the file is.
// done, which may be nil, is told of every megabyte how many bytes there are.
func WriteSparse(ctx context.Context, f *os.File, r io.Reader, done func(int64)) (int64, error) {
	w := sparseWriter{ctx: ctx, f: f}
	buf := make([]byte, copyBuffer)
	var n int64
	for {
		m, err := io.ReadFull(r, buf)
		if werr := w.write(buf[:m], n); werr != nil {
			return n, fault(werr, "write", f.Name(), 0)
		}
		n += int64(m)
		if done != nil && m > 0 {
			done(n)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return n, fault(f.Truncate(n), "write", f.Name(), 0)
		case err != nil:
			return n, err
		}
	}
}

// sparseWriter writes what is not zero.
type sparseWriter struct {
	ctx     context.Context
	f       *os.File
	written int64
	checked int64
}

func (w *sparseWriter) write(b []byte, off int64) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	for len(b) > 0 {
		skip := 0
		for skip < len(b) && zeroPage(b[skip:]) {
			skip += min(page, len(b)-skip)
		}
		b, off = b[skip:], off+int64(skip)
		run := 0
		for run < len(b) && !zeroPage(b[run:]) {
			run += min(page, len(b)-run)
		}
		if run == 0 {
			continue
		}
		if _, err := w.f.WriteAt(b[:run], off); err != nil {
			return err
		}
		w.written += int64(run)
		b, off = b[run:], off+int64(run)
	}
	if w.written-w.checked < spaceEvery {
		return nil
	}
	w.checked = w.written
	return EnoughSpace(filepath.Dir(w.f.Name()), reserve)
}

// zeroPage tells whether the first page of b, which may be shorter, is zero.
func zeroPage(b []byte) bool {
	n := min(page, len(b))
	return bytes.Equal(b[:n], zeros[:n])
}

// CopyPart makes dst, a new file, the size bytes of src at off. Where the file
// system shares blocks it does so; else holes stay holes, and pages of zeros
// become some.
func CopyPart(ctx context.Context, dst, src *os.File, off, size int64, done func(int64)) error {
	clone := unix.FileCloneRange{Src_fd: int64(src.Fd()), Src_offset: uint64(off), Src_length: uint64(size)}
	if err := unix.IoctlFileCloneRange(int(dst.Fd()), &clone); err == nil {
		return nil
	}
	if err := dst.Truncate(size); err != nil {
		return fault(err, "write", dst.Name(), size)
	}
	w := sparseWriter{ctx: ctx, f: dst}
	buf := make([]byte, copyBuffer)
	for at := off; at < off+size; {
		data, hole, err := extent(src, at, off+size)
		if err != nil {
			return fault(err, "read", src.Name(), 0)
		}
		data = max(data, at)
		for data < hole {
			b := buf[:min(hole-data, copyBuffer)]
			n, err := src.ReadAt(b, data)
			if n < len(b) {
				if err == nil || errors.Is(err, io.EOF) {
					err = mvm.Errorf(mvm.ErrUnavailable, "it became shorter while it was read").WithHint("try again when nobody writes to it")
				}
				return fault(err, "read", src.Name(), 0)
			}
			if err := w.write(b, data-off); err != nil {
				return fault(err, "write", dst.Name(), size)
			}
			data += int64(n)
			if done != nil {
				done(data - off)
			}
		}
		at = hole
	}
	return nil
}

// Keep reduces the file at path to its size bytes at off. Nothing is copied
// where the file system can cut from the front (ext4, XFS).
func Keep(ctx context.Context, path string, off, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fault(err, "cut", path, 0)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(off + size); err != nil {
		return fault(err, "cut", path, 0)
	}
	if off == 0 {
		return nil
	}
	// fallocate(2): the range has to be whole blocks of the file system, and may
	// not reach the file's end.
	if unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, off) == nil {
		return nil
	}
	return copyDown(ctx, f, path, off, size)
}

func copyDown(ctx context.Context, f *os.File, path string, off, size int64) error {
	part, err := os.OpenFile(path+".part", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault(err, "cut", path, 0)
	}
	defer func() { _ = part.Close() }()
	if err := CopyPart(ctx, part, f, off, size, nil); err != nil {
		return errors.Join(err, os.Remove(part.Name()))
	}
	return fault(os.Rename(part.Name(), path), "cut", path, 0)
}
