package ext4

// extent is a run of blocks of a file (struct ext4_extent).
type extent struct {
	logical uint32
	phys    uint64
	len     uint64
}

const (
	maxExtent      = 32768 // blocks of one that is written
	extentMagic    = 0xf30a
	extentSize     = 12
	extentsInInode = 4
	extentsInBlock = (blockSize - extentSize - 4) / extentSize // behind the header, before the checksum
)

// appendExtent adds a run, to the last one where it continues that.
func appendExtent(all []extent, e extent) []extent {
	for e.len > 0 {
		if last := len(all) - 1; last >= 0 {
			l := &all[last]
			if more := min(e.len, maxExtent-l.len); more > 0 && uint64(l.logical)+l.len == uint64(e.logical) && l.phys+l.len == e.phys {
				l.len += more
				e = extent{e.logical + uint32(more), e.phys + more, e.len - more}
				continue
			}
		}
		n := min(e.len, maxExtent)
		all = append(all, extent{e.logical, e.phys, n})
		e = extent{e.logical + uint32(n), e.phys + n, e.len - n}
	}
	return all
}

// placeExtents writes the tree of a file's extents: in the inode where they fit, else
// in blocks of their own, with as many levels as it takes.
func (w *Writer) placeExtents(n *inode, all []extent) error {
	n.flags |= flagExtents
	for _, e := range all {
		n.blocks += e.len
	}
	depth := 0
	for ; len(all) > extentsInInode; depth++ {
		var index []extent
		for len(all) > 0 {
			part := all[:min(len(all), extentsInBlock)]
			all = all[len(part):]
			at := w.alloc(1).phys
			n.blocks++
			b := make([]byte, blockSize)
			putExtents(b, part, depth, extentsInBlock)
			le.PutUint32(b[extentSize*(1+extentsInBlock):], crc32c(w.inodeSeed(n.ino), b[:extentSize*(1+extentsInBlock)]))
			if err := w.writeBlocks(at, b); err != nil {
				return err
			}
			index = append(index, extent{logical: part[0].logical, phys: at})
		}
		all = index
	}
	putExtents(n.block[:], all, depth, extentsInInode)
	return nil
}

// putExtents writes a node of the tree; at depth 0 it has extents, above it has nodes.
func putExtents(b []byte, all []extent, depth, room int) {
	le.PutUint16(b[0:], extentMagic)
	le.PutUint16(b[2:], uint16(len(all)))
	le.PutUint16(b[4:], uint16(room))
	le.PutUint16(b[6:], uint16(depth))
	for i, e := range all {
		p := b[extentSize*(1+i):]
		le.PutUint32(p[0:], e.logical)
		if depth > 0 {
			le.PutUint32(p[4:], uint32(e.phys))
			le.PutUint16(p[8:], uint16(e.phys>>32))
			continue
		}
		le.PutUint16(p[4:], uint16(e.len)) // 32768 means that many, beyond is unwritten
		le.PutUint16(p[6:], uint16(e.phys>>32))
		le.PutUint32(p[8:], uint32(e.phys))
	}
}

// freeExtents gives back what a node of the tree leads to.
func (w *Writer) freeExtents(b []byte, depth int) error {
	for i := range int(le.Uint16(b[2:])) {
		p := b[extentSize*(1+i):]
		if depth == 0 {
			w.giveBack(extent{phys: uint64(le.Uint32(p[8:])) | uint64(le.Uint16(p[6:]))<<32, len: uint64(le.Uint16(p[4:]))})
			continue
		}
		at := uint64(le.Uint32(p[4:])) | uint64(le.Uint16(p[8:]))<<32
		block := make([]byte, blockSize)
		if err := w.readBlock(at, block); err != nil {
			return err
		}
		if err := w.freeExtents(block, depth-1); err != nil {
			return err
		}
		w.giveBack(extent{phys: at, len: 1})
	}
	return nil
}

func (w *Writer) readBlock(at uint64, b []byte) error {
	if err := w.out.flush(); err != nil {
		return w.broken(err)
	}
	_, err := w.f.ReadAt(b, int64(at)*blockSize)
	return w.broken(err)
}
