package initramfs

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Types of files, as in the mode of an inode (inode(7)).
const (
	typeDir     = 0o040000
	typeFile    = 0o100000
	typeSymlink = 0o120000
	typeChar    = 0o020000
)

// maxField is what the eight hex digits of a header field can say.
const maxField = 1<<32 - 1

// Writer writes one segment of a cpio archive in the format "newc" of the
// kernel (buffer-format.rst). The same calls give the same bytes: owner is
// root, times are 0, inode numbers count up. The first error is kept and
// returned by Close. Directories have to come before what is in them.
type Writer struct {
	w     io.Writer
	off   int64
	inode uint32
	err   error
}

// NewWriter returns a Writer of a segment that begins at the start of w or at a
// multiple of four bytes.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Dir adds a directory. Names are with or without the leading slash.
func (w *Writer) Dir(name string, perm uint32) { w.header(name, typeDir|perm, 2, 0, 0, 0) }

// Symlink adds a symbolic link.
func (w *Writer) Symlink(name, target string) {
	w.header(name, typeSymlink|0o777, 1, int64(len(target)), 0, 0)
	w.write([]byte(target))
	w.pad(4)
}

// CharDevice adds a character device node.
func (w *Writer) CharDevice(name string, perm, major, minor uint32) {
	w.header(name, typeChar|perm, 1, 0, major, minor)
}

// File adds a file with size bytes from r.
func (w *Writer) File(name string, perm uint32, size int64, r io.Reader) {
	w.header(name, typeFile|perm, 1, size, 0, 0)
	if w.err != nil {
		return
	}
	n, err := io.CopyN(w.w, r, size)
	w.off += n
	if err != nil {
		w.err = fmt.Errorf("%s: %w", name, err)
	}
	w.pad(4)
}

// align is where a segment ends: at a block of any file system, so that a base
// can share its blocks with the copies that go on behind it.
const align = 4096

// Close writes the trailer and fills up to a multiple of 4 KiB (the kernel
// skips zeros between segments). It does not close the underlying writer.
func (w *Writer) Close() error {
	w.inode = 0
	w.entry("TRAILER!!!", 0, 1, 0, 0, 0)
	w.pad(align)
	return w.err
}

func (w *Writer) header(name string, mode, nlink uint32, size int64, major, minor uint32) {
	name = strings.TrimPrefix(name, "/")
	if w.err == nil && (name == "" || name == "TRAILER!!!" || len(name) > 4094 || strings.ContainsRune(name, 0)) {
		w.err = fmt.Errorf("%q cannot be a name in a cpio archive", name)
	}
	if w.err == nil && (size < 0 || size > maxField) {
		w.err = errors.New(name + " is too large for a cpio archive (4 GiB)")
	}
	w.inode++
	w.entry(name, mode, nlink, size, major, minor)
}

func (w *Writer) entry(name string, mode, nlink uint32, size int64, major, minor uint32) {
	// magic, ino, mode, uid, gid, nlink, mtime, size, dev, rdev, name length with zero, checksum
	w.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		w.inode, mode, 0, 0, nlink, 0, size, 0, 0, major, minor, len(name)+1, 0, name))
	w.pad(4)
}

func (w *Writer) write(p []byte) {
	if w.err != nil {
		return
	}
	n, err := w.w.Write(p)
	w.off, w.err = w.off+int64(n), err
}

func (w *Writer) pad(to int64) {
	if n := -w.off & (to - 1); n > 0 {
		w.write(make([]byte, n))
	}
}
