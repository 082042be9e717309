package ext4

import (
	"math/bits"
	"time"

	"golang.org/x/sys/unix"
)

// group is a block group's descriptor (struct ext4_group_desc).
type group struct {
	blockBitmap, inodeBitmap uint64
	freeBlocks, freeInodes   int
	blockSum, inodeSum       uint32
}

// Close writes what only now is known: directories, journal, bitmaps, descriptors and
// the superblock. The file is complete and on the disk when it returns.
func (w *Writer) Close() (Result, error) {
	if w.bad != nil {
		return Result{}, w.bad
	}
	for _, step := range []func() error{
		func() error { return w.writeDir(w.root) },
		w.writeJournal,
	} {
		if err := step(); err != nil {
			return Result{}, err
		}
	}
	dind := w.allocFresh(1).phys
	groups, blocks := w.geometry()
	if groups > growTo/blockSize/blocksPerGroup {
		return Result{}, ErrTooLarge
	}
	if err := w.needInode(uint32(groups * inodesPerGroup)); err != nil {
		return Result{}, err
	}
	descs := make([]group, groups)
	for g := range descs {
		descs[g].blockBitmap, descs[g].inodeBitmap = w.allocFresh(1).phys, w.allocFresh(1).phys
	}
	for g := range uint64(groups) {
		if hasSuper(g) {
			w.mark(g*blocksPerGroup, 1+gdtBlocks)
		}
	}
	if err := w.writeResizeInode(dind, groups); err != nil {
		return Result{}, err
	}
	used, err := w.writeBitmaps(descs, blocks)
	if err != nil {
		return Result{}, err
	}
	if err := w.writeSupers(descs, blocks); err != nil {
		return Result{}, err
	}
	for _, err := range []error{w.inodes.flush(), w.out.flush(), w.f.Truncate(int64(blocks) * blockSize)} {
		if err != nil {
			return Result{}, err
		}
	}
	for _, e := range w.free { // old content; where the host cannot, it only takes space
		_ = unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(e.phys)*blockSize, int64(e.len)*blockSize)
	}
	return Result{SizeBytes: int64(blocks) * blockSize, UsedBytes: int64(used) * blockSize, Entries: w.entries}, w.f.Sync()
}

// geometry says how many groups and blocks there are to be: for all that was given
// out and will be, and for what is to stay free.
func (w *Writer) geometry() (groups int, blocks uint64) {
	free := uint64(max(0, w.o.Free)+blockSize-1) / blockSize
	for groups = max(1, len(w.itables)); ; groups++ {
		blocks = w.next + uint64(groups-len(w.itables))*itableBlocks + 2*uint64(groups) + free
		for g := w.next / blocksPerGroup; g < uint64(groups); g++ {
			if hasSuper(g) { // its copy, and what may be left before it where a table does not fit
				blocks += 1 + gdtBlocks + itableBlocks
			}
		}
		blocks = (blocks + 255) &^ 255
		// The last group has to hold its copy of the descriptors and something more.
		blocks = max(blocks, uint64(groups-1)*blocksPerGroup+2*(1+gdtBlocks))
		if blocks <= uint64(groups)*blocksPerGroup {
			return groups, blocks
		}
	}
}

// journalBlocks is as small as jbd2 takes it, and larger in a file system of some size.
func (w *Writer) journalBlocks() uint64 {
	if w.next*blockSize < 256<<20 {
		return 1024
	}
	return 4096
}

// writeJournal makes the empty journal (struct journal_superblock_s).
func (w *Writer) writeJournal() error {
	want := w.journalBlocks()
	n := &inode{ino: inoJournal, kind: sIFREG, links: 1, size: want * blockSize, attr: Attr{Mode: 0o600, Modified: time.Now()}}
	var all []extent
	for logical := uint64(0); logical < want; {
		e := w.allocFresh(want - logical)
		all = appendExtent(all, extent{uint32(logical), e.phys, e.len})
		logical += e.len
	}
	b := make([]byte, 1024)
	be.PutUint32(b[0x00:], 0xc03b3998)
	be.PutUint32(b[0x04:], 4) // superblock, version 2
	be.PutUint32(b[0x0c:], blockSize)
	be.PutUint32(b[0x10:], uint32(want))
	be.PutUint32(b[0x14:], 1) // first block of the log
	be.PutUint32(b[0x18:], 1) // first sequence number
	copy(b[0x30:], w.o.UUID[:])
	be.PutUint32(b[0x40:], 1) // users
	if err := w.writeBlocks(all[0].phys, b); err != nil {
		return err
	}
	if err := w.placeExtents(n, all); err != nil {
		return err
	}
	return w.writeInode(n)
}

// writeResizeInode makes the file that holds the blocks which are set aside for
// descriptors: a double-indirect block leads to those of group 0, each of which lists
// its copies in the other groups.
func (w *Writer) writeResizeInode(dind uint64, groups int) error {
	const perBlock = blockSize / 4
	inUse := descBlocks(groups)
	list := make([]byte, blockSize)
	blocks := uint64(1)
	for i := inUse; i < gdtBlocks; i++ {
		at := uint64(1 + i)
		le.PutUint32(list[4*(i%perBlock):], uint32(at))
		b := make([]byte, blockSize)
		n := 0
		for g := uint64(1); g < uint64(groups); g++ {
			if hasSuper(g) {
				le.PutUint32(b[4*n:], uint32(g*blocksPerGroup+at))
				n++
			}
		}
		blocks += uint64(1 + n)
		if err := w.writeBlocks(at, b); err != nil {
			return err
		}
	}
	if err := w.writeBlocks(dind, list); err != nil {
		return err
	}
	now := time.Now()
	in := &inode{ino: inoResize, kind: sIFREG, links: 1, size: (perBlock*perBlock + perBlock + 12) * blockSize, blocks: blocks, attr: Attr{Mode: 0o600, Modified: now}}
	le.PutUint32(in.block[4*13:], uint32(dind)) // EXT4_DIND_BLOCK
	return w.writeInode(in)
}

func descBlocks(groups int) int { return (groups + descPerBlock - 1) / descPerBlock }

// writeBitmaps writes those of all groups and counts; it returns the blocks in use.
func (w *Writer) writeBitmaps(descs []group, blocks uint64) (used uint64, err error) {
	b := make([]byte, blockSize)
	for g := range descs {
		first := uint64(g) * blocksPerGroup
		clear(b)
		have := min(blocksPerGroup, blocks-first)
		for i := range uint64(blocksPerGroup / 64) {
			var word uint64
			if at := first/64 + i; at < uint64(len(w.used)) {
				word = w.used[at]
			}
			used += uint64(bits.OnesCount64(word))
			descs[g].freeBlocks -= bits.OnesCount64(word)
			le.PutUint64(b[8*i:], word)
		}
		descs[g].freeBlocks += int(have)
		setBits(b, int(have), blocksPerGroup)
		descs[g].blockSum = crc32c(w.seed, b)
		if err := w.writeBlocks(descs[g].blockBitmap, b); err != nil {
			return 0, err
		}

		clear(b)
		taken := max(0, min(inodesPerGroup, int(w.lastIno)-g*inodesPerGroup))
		setBits(b, 0, taken)
		descs[g].freeInodes = inodesPerGroup - taken
		for ino := range w.freed {
			if i := int(ino) - 1 - g*inodesPerGroup; i >= 0 && i < inodesPerGroup {
				b[i/8] &^= 1 << (i % 8)
				descs[g].freeInodes++
			}
		}
		setBits(b, inodesPerGroup, 8*blockSize)
		descs[g].inodeSum = crc32c(w.seed, b[:inodesPerGroup/8])
		if err := w.writeBlocks(descs[g].inodeBitmap, b); err != nil {
			return 0, err
		}
	}
	return used, nil
}

func setBits(b []byte, from, to int) {
	for i := from; i < to; i++ {
		b[i/8] |= 1 << (i % 8)
	}
}

// writeSupers writes superblock and descriptors to each group that has them.
func (w *Writer) writeSupers(descs []group, blocks uint64) error {
	gdt := make([]byte, descBlocks(len(descs))*blockSize)
	freeBlocks, freeInodes := uint64(0), uint64(0)
	for g, d := range descs {
		freeBlocks += uint64(d.freeBlocks)
		freeInodes += uint64(d.freeInodes)
		w.putDesc(gdt[g*descSize:][:descSize], g, d)
	}
	super := w.superblock(len(descs), blocks, freeBlocks, uint32(freeInodes))
	for g := range descs {
		if !hasSuper(uint64(g)) {
			continue
		}
		le.PutUint16(super[0x5a:], uint16(g))
		le.PutUint32(super[0x3fc:], crc32c(^uint32(0), super[:0x3fc]))
		first, block := uint64(g)*blocksPerGroup, make([]byte, blockSize)
		if g == 0 {
			copy(block[1024:], super)
		} else {
			copy(block, super)
		}
		if err := w.writeBlocks(first, block); err != nil {
			return err
		}
		if err := w.writeBlocks(first+1, gdt); err != nil {
			return err
		}
	}
	return nil
}

// putDesc writes a descriptor: first the low halves, then, from 0x20, the high ones.
func (w *Writer) putDesc(b []byte, g int, d group) {
	const inodesZeroed = 0x4
	used := max(0, min(inodesPerGroup, int(w.lastIno)-g*inodesPerGroup))
	for _, v := range []struct {
		lo, hi int
		block  uint64
	}{{0x0, 0x20, d.blockBitmap}, {0x4, 0x24, d.inodeBitmap}, {0x8, 0x28, w.itables[g]}} {
		le.PutUint32(b[v.lo:], uint32(v.block))
		le.PutUint32(b[v.hi:], uint32(v.block>>32))
	}
	for _, v := range []struct {
		lo, hi int
		value  uint32
	}{
		{0xc, 0x2c, uint32(d.freeBlocks)}, {0xe, 0x2e, uint32(d.freeInodes)}, {0x10, 0x30, uint32(w.dirs[uint32(g)])},
		{0x18, 0x38, d.blockSum}, {0x1a, 0x3a, d.inodeSum}, {0x1c, 0x32, uint32(inodesPerGroup - used)},
	} {
		le.PutUint16(b[v.lo:], uint16(v.value))
		le.PutUint16(b[v.hi:], uint16(v.value>>16))
	}
	le.PutUint16(b[0x12:], inodesZeroed)
	var num [4]byte
	le.PutUint32(num[:], uint32(g))
	le.PutUint16(b[0x1e:], uint16(crc32c(crc32c(w.seed, num[:]), b)))
}

// The features, as in disk.Mke2fsConfig.
const (
	compat   = 0x4 | 0x8 | 0x10 | 0x20               // has_journal ext_attr resize_inode dir_index
	incompat = 0x2 | 0x40 | 0x80 | 0x200             // filetype extent 64bit flex_bg
	roCompat = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400 // sparse_super large_file huge_file dir_nlink extra_isize metadata_csum
)

// superblock makes struct ext4_super_block but for the group that it is in and the
// checksum.
func (w *Writer) superblock(groups int, blocks, free uint64, freeInodes uint32) []byte {
	b := make([]byte, 1024)
	put := func(at int, v uint32) { le.PutUint32(b[at:], v) }
	put16 := func(at int, v uint16) { le.PutUint16(b[at:], v) }
	reserved := blocks / 100 // for root, as mke2fs -m 1
	now := uint32(time.Now().Unix())
	put(0x00, uint32(groups*inodesPerGroup))
	put(0x04, uint32(blocks))
	put(0x08, uint32(reserved))
	put(0x0c, uint32(free))
	put(0x10, freeInodes)
	put(0x18, 2) // blocks of 1024<<2 bytes
	put(0x1c, 2)
	put(0x20, blocksPerGroup)
	put(0x24, blocksPerGroup)
	put(0x28, inodesPerGroup)
	put(0x30, now)
	put16(0x36, 0xffff) // no check after so many mounts
	put16(0x38, 0xef53)
	put16(0x3a, 1) // clean
	put16(0x3c, 1) // go on after errors, as mke2fs has it
	put(0x40, now)
	put(0x4c, 1)
	put(0x54, firstIno-1)
	put16(0x58, inodeSize)
	put(0x5c, compat)
	put(0x60, incompat)
	put(0x64, roCompat)
	copy(b[0x68:], w.o.UUID[:])
	copy(b[0x78:0x88], w.o.Label)
	put16(0xce, uint16(gdtBlocks-descBlocks(groups)))
	put(0xe0, inoJournal)
	copy(b[0xec:0xfc], w.o.UUID[:]) // the seed of hashed directories
	b[0xfc] = 1                     // by half of MD4
	b[0xfd] = 1                     // the journal's inode is copied here
	put16(0xfe, descSize)
	put(0x100, 0xc) // user_xattr, acl
	put(0x108, now)
	put(0x150, uint32(blocks>>32))
	put(0x154, uint32(reserved>>32))
	put(0x158, uint32(free>>32))
	put16(0x15c, extraSize)
	put16(0x15e, extraSize)
	put(0x160, 2) // directory hashes of unsigned characters
	b[0x174] = 4  // 16 groups share their metadata's place
	b[0x175] = 1  // CRC-32C
	copy(b[0x10c:], w.journalBackup())
	return b
}

// journalBackup is i_block and the size of the journal.
func (w *Writer) journalBackup() []byte {
	out := make([]byte, 17*4)
	in, err := w.readInode(inoJournal)
	if err != nil {
		return out
	}
	copy(out, in[0x28:0x28+60])
	copy(out[15*4:], in[0x6c:0x70]) // high, then low
	copy(out[16*4:], in[0x04:0x08])
	return out
}
