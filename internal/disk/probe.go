package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Info is what the first bytes of a raw disk say.
type Info struct {
	FS          string // "ext2", "ext3", "ext4", "xfs", "btrfs", "squashfs"; "" when none of these is there
	UUID        string // of the file system, as blkid prints it; "" when it has none
	Label       string
	SizeBytes   int64 // of the file system, which may be smaller than the disk
	Partitioned bool  // there is a partition table, GPT or MBR
}

// RootSubvolumes are what distributions call the subvolume of a btrfs that has the root:
// Fedora, Ubuntu and Arch, Debian.
var RootSubvolumes = []string{"root", "@", "@rootfs"}

// Probe reads the superblock of the file system on a raw disk, or finds its
// partition table. A disk with neither gives a zero Info.
func Probe(path string) (Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return Info{}, fault(err, "read disk", path, 0)
	}
	defer func() { _ = f.Close() }()
	info, err := probe(f)
	return info, fault(err, "read disk", path, 0)
}

// ProbeAt is Probe for a disk, or a part of one, that is open.
func ProbeAt(r io.ReaderAt) (Info, error) { return probe(r) }

func probe(r io.ReaderAt) (Info, error) {
	for _, p := range []struct {
		off  int64
		size int
		read func([]byte) Info
	}{
		{1024, 1024, probeExt},
		{0, 128, probeXFS},
		{64 << 10, 1024, probeBtrfs},
		{0, 96, probeSquashfs},
	} {
		b, err := window(r, p.off, p.size)
		if err != nil {
			return Info{}, err
		}
		if info := p.read(b); info.FS != "" {
			return info, nil
		}
	}
	b, err := window(r, 0, 8192)
	return Info{Partitioned: hasTable(b)}, err
}

// window reads size bytes at off; what is behind the end of the file is zero.
func window(r io.ReaderAt, off int64, size int) ([]byte, error) {
	b := make([]byte, size)
	if _, err := r.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// probeExt reads struct ext4_super_block (kernel, Documentation/filesystems/ext4/super.rst).
func probeExt(b []byte) Info {
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != 0xef53 {
		return Info{}
	}
	const (
		compatJournal      = 0x4
		incompat64bit      = 0x80
		incompatExt4       = 0x40 | incompat64bit | 0x200 // extents, 64bit, flex_bg
		roCompatExt4       = 0x8 | 0x10 | 0x20 | 0x40 | 0x400
		maxLogBlock        = 6 // 64 KiB
		largestFileSystem  = 1 << 60
		labelOff, labelEnd = 0x78, 0x88
	)
	compat, incompat, roCompat := le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	logBlock, blocks := le.Uint32(b[0x18:]), uint64(le.Uint32(b[0x4:]))
	if logBlock > maxLogBlock {
		return Info{}
	}
	if incompat&incompat64bit != 0 {
		blocks |= uint64(le.Uint32(b[0x150:])) << 32
	}
	if blocks > largestFileSystem>>(10+logBlock) {
		return Info{}
	}
	info := Info{FS: "ext2", UUID: uuid(b[0x68:0x78]), Label: text(b[labelOff:labelEnd]), SizeBytes: int64(blocks << (10 + logBlock))}
	switch {
	case incompat&incompatExt4 != 0 || roCompat&roCompatExt4 != 0:
		info.FS = "ext4"
	case compat&compatJournal != 0:
		info.FS = "ext3"
	}
	return info
}

// probeXFS reads struct xfs_dsb (kernel, fs/xfs/libxfs/xfs_format.h).
func probeXFS(b []byte) Info {
	be := binary.BigEndian
	block, blocks := uint64(be.Uint32(b[4:])), be.Uint64(b[8:])
	if string(b[:4]) != "XFSB" || block < 512 || block > 64<<10 || block&(block-1) != 0 || blocks > 1<<60/block {
		return Info{}
	}
	return Info{FS: "xfs", UUID: uuid(b[32:48]), Label: text(b[108:120]), SizeBytes: int64(blocks * block)}
}

// probeBtrfs reads struct btrfs_super_block (kernel, include/uapi/linux/btrfs_tree.h).
func probeBtrfs(b []byte) Info {
	size := binary.LittleEndian.Uint64(b[0x70:])
	if string(b[0x40:0x48]) != "_BHRfS_M" || size > 1<<60 {
		return Info{}
	}
	return Info{FS: "btrfs", UUID: uuid(b[0x20:0x30]), Label: text(b[0x12b:0x22b]), SizeBytes: int64(size)}
}

// probeSquashfs reads struct squashfs_super_block (kernel, fs/squashfs/squashfs_fs.h).
func probeSquashfs(b []byte) Info {
	size := binary.LittleEndian.Uint64(b[40:])
	if string(b[:4]) != "hsqs" || binary.LittleEndian.Uint16(b[28:]) != 4 || size > 1<<60 {
		return Info{}
	}
	return Info{FS: "squashfs", SizeBytes: int64(size)}
}

// hasTable finds a GPT, with sectors of 512 or 4096 bytes, or an MBR. A boot
// sector without partitions has the same signature, so one entry has to make
// sense: its status is 0 or 0x80, its type and length are not zero.
func hasTable(b []byte) bool {
	if string(b[512:520]) == "EFI PART" || string(b[4096:4104]) == "EFI PART" {
		return true
	}
	if b[510] != 0x55 || b[511] != 0xaa {
		return false
	}
	some := false
	for e := b[446:510]; len(e) > 0; e = e[16:] {
		if e[0]&0x7f != 0 {
			return false
		}
		some = some || e[4] != 0 && binary.LittleEndian.Uint32(e[12:]) != 0
	}
	return some
}

func uuid(b []byte) string {
	if bytes.Equal(b, make([]byte, 16)) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// text is a label up to its first zero byte. It comes from somebody else's
// disk: what cannot be printed becomes a question mark.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	out := []rune(string(bytes.ToValidUTF8(b, []byte("?"))))
	for i, r := range out {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			out[i] = '?'
		}
	}
	return string(out)
}
