// Package ext4 writes a new ext4 file system in one pass over the files that it
// shall hold, without a mount, without root and without a tree on the host: what
// hostile archives name exists in the new file system only. The result has the
// features of disk.Mke2fsConfig (journal, checksums, room to grow online), so that
// guests cannot tell it from one that mke2fs made.
//
// The layout is that of the kernel's Documentation/filesystems/ext4. It must not
// know of archives, images or VMs.
package ext4

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"time"
)

const (
	blockSize      = 4096
	blocksPerGroup = 8 * blockSize // a bitmap is one block
	inodeSize      = 256
	inodesPerGroup = 16384 // one for each 8 KiB, which images of many small files need
	itableBlocks   = inodesPerGroup * inodeSize / blockSize
	descSize       = 64
	descPerBlock   = blockSize / descSize

	// gdtBlocks are set aside for group descriptors, so that the file system can
	// grow online to growTo without moving anything.
	growTo    = 1 << 40
	gdtBlocks = growTo / (blocksPerGroup * blockSize) / descPerBlock

	inoRoot      = 2
	inoResize    = 7
	inoJournal   = 8
	inoLostFound = 11
	firstIno     = inoLostFound + 1

	maxName   = 255
	maxTarget = blockSize - 1 // what the kernel reads of a symbolic link
)

// Attr is what a file has besides its name and content.
type Attr struct {
	Mode     uint32 // permissions with set-user-id, set-group-id and sticky: 0 to 07777
	UID, GID uint32
	Modified time.Time // 1901 to 2446; outside it becomes the nearest
	Accessed time.Time // zero is Modified
	Xattrs   map[string]string
}

// Options say what the file system shall be.
type Options struct {
	Label      string   // up to 16 bytes
	UUID       [16]byte // not zero
	Free       int64    // bytes that are to be free in the end, at least
	MaxBytes   int64    // that the contents of all files may have, holes included; 0 is 256 GiB
	MaxEntries int      // how many files there may be; 0 is 1,000,000
}

// The limits that Options has when it names none.
const (
	DefaultMaxBytes   = 256 << 30
	DefaultMaxEntries = 1_000_000
)

// Result is what was made.
type Result struct {
	SizeBytes int64 // of the file
	UsedBytes int64 // of its blocks that are in use
	Entries   int   // files of all kinds
}

// The errors of a Writer besides those of its file and its readers. Each comes with
// the path that it is about.
var (
	ErrPath     = errors.New("the path leads out of the tree")
	ErrName     = errors.New("the name cannot be that of a file")
	ErrNotDir   = errors.New("it lies below something that is not a directory")
	ErrLinks    = errors.New("it lies below symbolic links that lead in a circle")
	ErrNoTarget = errors.New("the file that it is a hard link to is not there")
	ErrXattr    = errors.New("its extended attributes cannot be stored")
	ErrTooLarge = errors.New("the files are larger than the limit")
	ErrTooMany  = errors.New("there are more files than the limit")
	ErrShort    = errors.New("the content ends early")
)

// Writer writes one file system. It is not safe for use by several goroutines. What
// it holds in memory grows with the number of names, by about 150 bytes each, and
// not with their contents.
type Writer struct {
	f    *os.File
	o    Options
	seed uint32 // of all checksums: that of the UUID

	next  uint64   // the first block that was never given out
	free  []extent // given back; phys and len only
	used  []uint64 // bitmap of blocks, by words
	out   buffer
	chunk []byte // for contents on their way

	itables []uint64 // first block of each group's inode table
	lastIno uint32
	freed   map[uint32]bool // inodes given back
	dirs    map[uint32]int  // directories by group
	inodes  buffer

	root    *node
	layer   uint16
	entries int
	bytes   int64
	bad     error // a failed write, after which nothing goes on
}

// New begins a file system in f, which has to be empty. The caller closes f and
// removes it when anything fails.
func New(f *os.File, o Options) (*Writer, error) {
	if len(o.Label) > 16 || o.UUID == [16]byte{} {
		return nil, fmt.Errorf("ext4: label %q or UUID %x", o.Label, o.UUID)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	w := &Writer{
		f: f, o: o, seed: crc32c(^uint32(0), o.UUID[:]), next: 1 + gdtBlocks, lastIno: firstIno - 1,
		freed: map[uint32]bool{}, dirs: map[uint32]int{}, chunk: make([]byte, 1<<20),
		out: buffer{f: f, limit: 1 << 20}, inodes: buffer{f: f, limit: 64 << 10},
	}
	w.mark(0, 1+gdtBlocks)
	now := time.Now()
	w.root = w.newDir(inoRoot, nil, Attr{Mode: 0o755, Modified: now})
	w.root.dir.parent = w.root
	lost := w.newDir(inoLostFound, w.root, Attr{Mode: 0o700, Modified: now})
	w.root.dir.children["lost+found"] = lost
	return w, w.needInode(firstIno)
}

// buffer gathers writes that follow one another.
type buffer struct {
	f     *os.File
	limit int
	at    int64
	data  []byte
}

func (b *buffer) write(at int64, p []byte) error {
	if len(b.data) > 0 && (at != b.at+int64(len(b.data)) || len(b.data)+len(p) > b.limit) {
		if err := b.flush(); err != nil {
			return err
		}
	}
	if len(p) >= b.limit {
		_, err := b.f.WriteAt(p, at)
		return err
	}
	if len(b.data) == 0 {
		b.at = at
	}
	b.data = append(b.data, p...)
	return nil
}

func (b *buffer) flush() error {
	_, err := b.f.WriteAt(b.data, b.at)
	b.data = b.data[:0]
	return err
}

// writeBlocks writes whole blocks, the last one filled up with zeros.
func (w *Writer) writeBlocks(block uint64, p []byte) error {
	err := w.out.write(int64(block)*blockSize, p)
	if rest := len(p) % blockSize; err == nil && rest != 0 {
		err = w.out.write(int64(block)*blockSize+int64(len(p)), zeros[:blockSize-rest])
	}
	return w.broken(err)
}

var zeros [blockSize]byte

// broken keeps the first error of the file.
func (w *Writer) broken(err error) error {
	if w.bad == nil {
		w.bad = err
	}
	return err
}

// hasSuper says whether a group begins with a copy of the superblock: sparse_super
// has them in 0, 1 and the powers of 3, 5 and 7.
func hasSuper(group uint64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// alloc gives out up to n blocks in a row, of those that were given back first.
func (w *Writer) alloc(n uint64) extent {
	if last := len(w.free) - 1; last >= 0 {
		e := &w.free[last]
		got := extent{phys: e.phys, len: min(n, e.len)}
		e.phys, e.len = e.phys+got.len, e.len-got.len
		if e.len == 0 {
			w.free = w.free[:last]
		}
		w.mark(got.phys, got.len)
		return got
	}
	return w.allocFresh(n)
}

// allocFresh gives out up to n blocks in a row that read as zeros.
func (w *Writer) allocFresh(n uint64) extent {
	if w.next%blocksPerGroup == 0 && hasSuper(w.next/blocksPerGroup) {
		w.next += 1 + gdtBlocks
	}
	end := (w.next/blocksPerGroup + 1) * blocksPerGroup
	for end-w.next < n && !hasSuper(end/blocksPerGroup) {
		end += blocksPerGroup
	}
	got := extent{phys: w.next, len: min(n, end-w.next)}
	w.next += got.len
	w.mark(got.phys, got.len)
	return got
}

// allocRow gives out n blocks in a row that read as zeros; what is left before them
// can be had by alloc.
func (w *Writer) allocRow(n uint64) uint64 {
	for {
		got := w.allocFresh(n)
		if got.len == n {
			return got.phys
		}
		w.giveBack(got)
	}
}

func (w *Writer) giveBack(e extent) {
	for b := e.phys; b < e.phys+e.len; b++ {
		w.used[b/64] &^= 1 << (b % 64)
	}
	w.free = append(w.free, extent{phys: e.phys, len: e.len})
}

func (w *Writer) mark(block, n uint64) {
	for need := (block + n + 63) / 64; uint64(len(w.used)) < need; {
		w.used = append(w.used, 0)
	}
	for b := block; b < block+n; b++ {
		w.used[b/64] |= 1 << (b % 64)
	}
}

// castagnoli is CRC-32C's table, which the processor has instructions for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's: without the inversions that Go's has around it.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

func pathError(path string, err error) error {
	if err == nil {
		return nil
	}
	var e *fs.PathError
	if errors.As(err, &e) { // of the file itself
		return err
	}
	return fmt.Errorf("%q: %w", path, err)
}
