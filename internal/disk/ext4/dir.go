package ext4

import (
	"maps"
	"slices"
)

const (
	dirTail      = 12 // with the checksum, in disguise of an entry
	dirSpace     = blockSize - dirTail
	lostFoundMin = 4 // blocks that e2fsck finds ready for what it saves
)

// dirent is one name in a directory.
type dirent struct {
	ino  uint32
	name string
	kind uint16
}

func direntSize(name string) int { return 8 + pad4(len(name)) }

// writeDir writes a directory and all below it.
func (w *Writer) writeDir(n *node) error {
	d := n.dir
	all := []dirent{{n.ino, ".", sIFDIR}, {d.parent.ino, "..", sIFDIR}}
	links := 2
	for _, name := range slices.Sorted(maps.Keys(d.children)) {
		c := d.children[name]
		all = append(all, dirent{c.ino, name, c.kind})
		if c.dir != nil {
			links++
		}
	}
	if links > maxLinks {
		links = 1 // dir_nlink: too many to count
	}
	data := w.dirBlocks(n.ino, all)
	if n.ino == inoLostFound {
		for len(data) < lostFoundMin*blockSize {
			data = append(data, w.dirBlock(n.ino, nil)...)
		}
	}
	in := &inode{ino: n.ino, kind: sIFDIR, attr: d.attr, links: uint16(links), size: uint64(len(data))}
	var extents []extent
	for logical := uint32(0); len(data) > 0; {
		e := w.alloc(uint64(len(data) / blockSize))
		part := data[:e.len*blockSize]
		if err := w.writeBlocks(e.phys, part); err != nil {
			return err
		}
		extents = appendExtent(extents, extent{logical, e.phys, e.len})
		logical += uint32(e.len)
		data = data[len(part):]
	}
	if err := w.placeExtents(in, extents); err != nil {
		return err
	}
	w.dirs[(n.ino-1)/inodesPerGroup]++
	if err := w.writeInode(in); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(d.children)) {
		if c := d.children[name]; c.dir != nil {
			if err := w.writeDir(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// dirBlocks packs entries, which do not cross blocks.
func (w *Writer) dirBlocks(ino uint32, all []dirent) []byte {
	var data []byte
	for len(all) > 0 {
		n, space := 0, dirSpace
		for n < len(all) && direntSize(all[n].name) <= space {
			space -= direntSize(all[n].name)
			n++
		}
		data = append(data, w.dirBlock(ino, all[:n])...)
		all = all[n:]
	}
	return data
}

// dirBlock makes one block. The last entry reaches up to the checksum.
func (w *Writer) dirBlock(ino uint32, all []dirent) []byte {
	b := make([]byte, blockSize)
	le.PutUint16(b[4:], dirSpace) // where there is no entry
	at := 0
	for i, e := range all {
		length := direntSize(e.name)
		if i == len(all)-1 {
			length = dirSpace - at
		}
		le.PutUint32(b[at:], e.ino)
		le.PutUint16(b[at+4:], uint16(length))
		b[at+6], b[at+7] = byte(len(e.name)), fileType[e.kind]
		copy(b[at+8:], e.name)
		at += length
	}
	tail := b[dirSpace:]
	le.PutUint16(tail[4:], dirTail)
	tail[7] = 0xde
	le.PutUint32(tail[8:], crc32c(w.inodeSeed(ino), b[:dirSpace]))
	return b
}
