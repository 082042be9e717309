package ext4

import (
	"bytes"
	"errors"
	"io"
)

// Create makes a regular file of so many bytes, which are read from r. Blocks of
// zeros become holes.
func (w *Writer) Create(path string, a Attr, size int64, r io.Reader) error {
	return w.put(path, func() (*file, error) {
		if size < 0 || size > w.o.MaxBytes-w.bytes {
			return nil, ErrTooLarge
		}
		w.bytes += size
		if err := checkXattrs(a.Xattrs); err != nil {
			return nil, err
		}
		ino, err := w.newInode()
		if err != nil {
			return nil, err
		}
		n := &inode{ino: ino, kind: sIFREG, attr: a, links: 1, size: uint64(size)}
		all, err := w.copyIn(r, size)
		if err != nil {
			return nil, err
		}
		if err := w.placeExtents(n, all); err != nil {
			return nil, err
		}
		return &file{ino: ino, kind: sIFREG, links: 1}, w.writeInode(n)
	})
}

// copyIn writes the content of a file and says where it is.
func (w *Writer) copyIn(r io.Reader, size int64) ([]extent, error) {
	var all []extent
	var logical uint32
	for size > 0 {
		b := w.chunk[:min(size, int64(len(w.chunk)))]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				err = ErrShort
			}
			return nil, err
		}
		size -= int64(len(b))
		for len(b) > 0 {
			data := dataRun(b)
			if len(data) == 0 {
				b = b[min(len(b), blockSize):]
				logical++
				continue
			}
			b = b[len(data):]
			for len(data) > 0 {
				e := w.alloc(uint64(len(data)+blockSize-1) / blockSize)
				part := data[:min(len(data), int(e.len)*blockSize)]
				if err := w.writeBlocks(e.phys, part); err != nil {
					return nil, err
				}
				data = data[len(part):]
				all = appendExtent(all, extent{logical, e.phys, e.len})
				logical += uint32(e.len)
			}
		}
	}
	return all, nil
}

// dataRun returns the blocks that b begins with up to one that is all zeros.
func dataRun(b []byte) []byte {
	end := 0
	for end < len(b) {
		block := b[end:min(len(b), end+blockSize)]
		if bytes.Equal(block, zeros[:len(block)]) {
			break
		}
		end += len(block)
	}
	return b[:end]
}

// Symlink makes a symbolic link.
func (w *Writer) Symlink(path, target string, a Attr) error {
	return w.put(path, func() (*file, error) {
		if target == "" || len(target) > maxTarget || bytes.IndexByte([]byte(target), 0) >= 0 {
			return nil, ErrName
		}
		n, err := w.special(sIFLNK, Attr{Mode: 0o777, UID: a.UID, GID: a.GID, Modified: a.Modified, Accessed: a.Accessed, Xattrs: a.Xattrs})
		if err != nil {
			return nil, err
		}
		n.size = uint64(len(target))
		f := &file{ino: n.ino, kind: sIFLNK, links: 1, target: target}
		if len(target) < len(n.block) {
			copy(n.block[:], target)
			return f, w.writeInode(n)
		}
		e := w.alloc(1)
		if err := w.writeBlocks(e.phys, []byte(target)); err != nil {
			return nil, err
		}
		if err := w.placeExtents(n, []extent{e}); err != nil {
			return nil, err
		}
		return f, w.writeInode(n)
	})
}

// Kind is a special file's.
type Kind uint16

// The kinds of special files.
const (
	Fifo   Kind = sIFIFO
	Socket Kind = sIFSOCK
	Char   Kind = sIFCHR
	Block  Kind = sIFBLK
)

// Mknod makes a special file; major and minor are those of a device. It is one in
// the new file system only: no device of the host is touched.
func (w *Writer) Mknod(path string, kind Kind, major, minor uint32, a Attr) error {
	return w.put(path, func() (*file, error) {
		n, err := w.special(uint16(kind), a)
		if err != nil {
			return nil, err
		}
		switch {
		case kind != Char && kind != Block:
		case major > 0xfff || minor > 0xfffff:
			return nil, ErrName
		case major < 256 && minor < 256:
			le.PutUint32(n.block[0:], major<<8|minor)
		default:
			le.PutUint32(n.block[4:], minor&0xff|major<<8|minor&^0xff<<12)
		}
		return &file{ino: n.ino, kind: n.kind, links: 1}, w.writeInode(n)
	})
}

func (w *Writer) special(kind uint16, a Attr) (*inode, error) {
	if err := checkXattrs(a.Xattrs); err != nil {
		return nil, err
	}
	ino, err := w.newInode()
	return &inode{ino: ino, kind: kind, attr: a, links: 1}, err
}
