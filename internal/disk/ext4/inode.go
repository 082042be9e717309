package ext4

import (
	"encoding/binary"
	"time"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian // of the journal
)

// inode is one on its way to the disk (struct ext4_inode).
type inode struct {
	ino    uint32
	kind   uint16
	attr   Attr
	links  uint16
	size   uint64
	blocks uint64 // that it takes, its own metadata included
	flags  uint32
	block  [60]byte // extents, a short symbolic link, or a device
	acl    uint64   // block of extended attributes
	inline []byte   // extended attributes in the inode
}

const (
	flagExtents = 0x80000
	extraSize   = 32 // of struct ext4_inode beyond the old 128 bytes
	xattrSpace  = inodeSize - 128 - extraSize
)

// newInode gives out the next number.
func (w *Writer) newInode() (uint32, error) {
	if w.entries++; w.entries > w.o.MaxEntries {
		return 0, ErrTooMany
	}
	w.lastIno++
	return w.lastIno, w.needInode(w.lastIno)
}

// needInode sees to it that the table with an inode has its place.
func (w *Writer) needInode(ino uint32) error {
	for group := int((ino - 1) / inodesPerGroup); group >= len(w.itables); {
		w.itables = append(w.itables, w.allocRow(itableBlocks))
	}
	return w.bad
}

func (w *Writer) inodeAt(ino uint32) int64 {
	group, index := (ino-1)/inodesPerGroup, (ino-1)%inodesPerGroup
	return int64(w.itables[group])*blockSize + int64(index)*inodeSize
}

// inodeSeed is that of the checksums of all that belongs to an inode.
func (w *Writer) inodeSeed(ino uint32) uint32 {
	var b [8]byte // the number and the generation, which is 0
	le.PutUint32(b[:], ino)
	return crc32c(w.seed, b[:])
}

func (w *Writer) writeInode(n *inode) error {
	if err := w.placeXattrs(n); err != nil {
		return err
	}
	b := make([]byte, inodeSize)
	le.PutUint16(b[0x00:], n.kind|uint16(n.attr.Mode&0o7777))
	le.PutUint16(b[0x02:], uint16(n.attr.UID))
	le.PutUint32(b[0x04:], uint32(n.size))
	modified := n.attr.Modified
	accessed := n.attr.Accessed
	if accessed.IsZero() {
		accessed = modified
	}
	putTime(b, 0x08, 0x8c, accessed)
	putTime(b, 0x0c, 0x84, modified) // changed
	putTime(b, 0x10, 0x88, modified)
	putTime(b, 0x90, 0x94, modified) // created
	le.PutUint16(b[0x18:], uint16(n.attr.GID))
	le.PutUint16(b[0x1a:], n.links)
	sectors := n.blocks * (blockSize / 512)
	le.PutUint32(b[0x1c:], uint32(sectors))
	le.PutUint16(b[0x74:], uint16(sectors>>32))
	le.PutUint32(b[0x20:], n.flags)
	copy(b[0x28:], n.block[:])
	le.PutUint32(b[0x68:], uint32(n.acl))
	le.PutUint16(b[0x76:], uint16(n.acl>>32))
	le.PutUint32(b[0x6c:], uint32(n.size>>32))
	le.PutUint16(b[0x78:], uint16(n.attr.UID>>16))
	le.PutUint16(b[0x7a:], uint16(n.attr.GID>>16))
	le.PutUint16(b[0x80:], extraSize)
	copy(b[128+extraSize:], n.inline)
	return w.putInode(n.ino, b)
}

// putInode writes an inode as it is, with its checksum.
func (w *Writer) putInode(ino uint32, b []byte) error {
	le.PutUint16(b[0x7c:], 0)
	le.PutUint16(b[0x82:], 0)
	sum := crc32c(w.inodeSeed(ino), b)
	le.PutUint16(b[0x7c:], uint16(sum))
	le.PutUint16(b[0x82:], uint16(sum>>16))
	return w.broken(w.inodes.write(w.inodeAt(ino), b))
}

// readInode reads one that was written.
func (w *Writer) readInode(ino uint32) ([]byte, error) {
	if err := w.inodes.flush(); err != nil {
		return nil, w.broken(err)
	}
	b := make([]byte, inodeSize)
	_, err := w.f.ReadAt(b, w.inodeAt(ino))
	return b, w.broken(err)
}

// setLinks writes anew how many names a file has.
func (w *Writer) setLinks(f *file) error {
	b, err := w.readInode(f.ino)
	if err != nil {
		return err
	}
	le.PutUint16(b[0x1a:], f.links)
	return w.putInode(f.ino, b)
}

// freeFile gives an inode back, with all its blocks.
func (w *Writer) freeFile(ino uint32) error {
	b, err := w.readInode(ino)
	if err != nil {
		return err
	}
	if acl := uint64(le.Uint32(b[0x68:])) | uint64(le.Uint16(b[0x76:]))<<32; acl != 0 {
		w.giveBack(extent{phys: acl, len: 1})
	}
	if le.Uint32(b[0x20:])&flagExtents != 0 {
		if err := w.freeExtents(b[0x28:0x28+60], int(le.Uint16(b[0x28+6:]))); err != nil {
			return err
		}
	}
	w.freeIno(ino)
	return w.broken(w.inodes.write(w.inodeAt(ino), make([]byte, inodeSize)))
}

func (w *Writer) freeIno(ino uint32) {
	w.freed[ino] = true
	w.entries--
}

// putTime writes seconds, and nanoseconds with two more bits of the seconds, to
// where the format has them.
func putTime(b []byte, at, extra int, t time.Time) {
	const first, last = -1 << 31, 1<<34 - 1<<31 - 1 // 1901 and 2446
	sec, nsec := t.Unix(), uint32(t.Nanosecond())
	if t.IsZero() {
		sec, nsec = 0, 0
	}
	if sec < first {
		sec, nsec = first, 0
	}
	if sec > last {
		sec, nsec = last, 0
	}
	le.PutUint32(b[at:], uint32(sec))
	epoch := uint32((sec-int64(int32(sec)))>>32) & 3
	le.PutUint32(b[extra:], nsec<<2|epoch)
}
