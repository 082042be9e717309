package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"github.com/mvmctl/mvm"
)

// CheckDisk refuses a disk image that takes content from other files, is
// encrypted, cut short or larger than limit bytes, before a tool opens it. It
// returns how many bytes a guest would see; for Raw that is the file's size.
func CheckDisk(r io.ReaderAt, size int64, format string, limit int64) (int64, error) {
	var virtual int64
	var err error
	switch format {
	case Raw:
		virtual = size
	case Qcow2:
		virtual, err = checkQcow2(r, size)
	case VHD:
		virtual, err = checkVHD(r, size)
	case VMDK:
		virtual, err = checkVMDK(r, size)
	}
	if err == nil && virtual > limit {
		err = mvm.Errorf(mvm.ErrInvalid, "it is a disk of %d GiB, more than the %d GiB that are allowed", virtual>>30, limit>>30).
			WithHint("make it smaller with 'qemu-img resize --shrink', after its partitions")
	}
	if err == nil && virtual <= 0 {
		err = broken("its header says that the disk has %d bytes", virtual)
	}
	return virtual, err
}

func broken(format string, args ...any) error {
	return mvm.Errorf(mvm.ErrBroken, format, args...).WithHint("get the file again, from somebody you trust")
}

func other(what string) error {
	return mvm.Errorf(mvm.ErrInvalid, "it %s: mvm would have to open that one, whatever it is", what).
		WithHint("if you trust it, make one file of it with 'qemu-img convert -O qcow2', and import that")
}

// checkQcow2 reads the header (QEMU, docs/interop/qcow2.txt; big-endian).
func checkQcow2(r io.ReaderAt, size int64) (int64, error) {
	b, err := window(r, 0, 104)
	if err != nil {
		return 0, err
	}
	be := binary.BigEndian
	if len(b) < 72 || string(b[:4]) != "QFI\xfb" {
		return 0, broken("its qcow2 header is cut short")
	}
	version := be.Uint32(b[4:])
	const externalData = 1 << 2
	switch {
	case version != 2 && version != 3:
		return 0, mvm.Errorf(mvm.ErrUnsupported, "qcow2 version %d is not known", version).WithHint("convert it with 'qemu-img convert -O qcow2'")
	case version == 3 && len(b) < 104:
		return 0, broken("its qcow2 header is cut short")
	case be.Uint64(b[8:]) != 0 || be.Uint32(b[16:]) != 0:
		return 0, other("is based on another file")
	case version == 3 && be.Uint64(b[72:])&externalData != 0:
		return 0, other("keeps its data in another file")
	case be.Uint32(b[32:]) != 0:
		return 0, mvm.Errorf(mvm.ErrUnsupported, "it is encrypted").WithHint("decrypt it with 'qemu-img convert', and import the result")
	}
	virtual := be.Uint64(b[24:])
	if virtual > 1<<62 {
		return 0, broken("its header says that the disk has %d bytes", virtual)
	}
	return int64(virtual), tablesWithin(r, size, be.Uint64(b[40:]), be.Uint32(b[36:]), be.Uint32(b[20:]))
}

// tablesWithin holds the tables of a qcow2 file within it: QEMU takes what is
// behind a file's end for zeros, and so for clusters that nothing was written to.
func tablesWithin(r io.ReaderAt, size int64, l1 uint64, entries, clusterBits uint32) error {
	const most = 4 << 20 // entries, as QEMU has it (QCOW_MAX_L1_SIZE)
	const offset = 0x00fffffffffffe00
	if clusterBits < 9 || clusterBits > 21 || entries > most || l1 > 1<<56 {
		return broken("its qcow2 header makes no sense")
	}
	cluster := int64(1) << clusterBits
	buf := make([]byte, 64<<10)
	for at, left := int64(l1), int64(entries)*8; left > 0; {
		part := buf[:min(left, int64(len(buf)))]
		if n, err := r.ReadAt(part, at); n < len(part) {
			if err == nil || errors.Is(err, io.EOF) {
				return broken("it is cut short: its table of clusters is missing")
			}
			return err
		}
		for e := part; len(e) > 0; e = e[8:] {
			if l2 := int64(binary.BigEndian.Uint64(e) & offset); l2 != 0 && l2 > size-cluster {
				return broken("it is cut short: a table of clusters is missing")
			}
		}
		at, left = at+int64(len(part)), left-int64(len(part))
	}
	return nil
}

// vhdFooterBytes is the size of the footer, of which dynamic disks have a copy in
// front (Virtual Hard Disk Image Format Specification 1.0; big-endian).
const vhdFooterBytes = 512

const (
	vhdFixed   = 2
	vhdDynamic = 3
)

// fixedVHD tells whether a file is a raw disk with the footer of a VHD.
func fixedVHD(r io.ReaderAt, size int64) bool {
	if size < 2*vhdFooterBytes {
		return false
	}
	b, err := window(r, size-vhdFooterBytes, vhdFooterBytes)
	return err == nil && len(b) == vhdFooterBytes && bytes.HasPrefix(b, []byte("conectix")) &&
		binary.BigEndian.Uint32(b[60:]) == vhdFixed && vhdSum(b) == binary.BigEndian.Uint32(b[64:])
}

// FixedVHD returns how many bytes of a VHD are the disk itself, beginning at 0,
// and false for one that is not as simple.
func FixedVHD(r io.ReaderAt, size int64) (int64, bool) {
	if !fixedVHD(r, size) {
		return 0, false
	}
	return size - vhdFooterBytes, true
}

func vhdSum(b []byte) uint32 {
	var sum uint32
	for i, c := range b[:85] {
		if i < 64 || i >= 68 {
			sum += uint32(c)
		}
	}
	return ^sum
}

func checkVHD(r io.ReaderAt, size int64) (int64, error) {
	if n, ok := FixedVHD(r, size); ok {
		return n, nil
	}
	b, err := window(r, 0, vhdFooterBytes)
	if err != nil {
		return 0, err
	}
	be := binary.BigEndian
	switch {
	case len(b) < vhdFooterBytes || string(b[:8]) != "conectix":
		return 0, broken("it has no VHD header")
	case be.Uint32(b[60:]) == vhdFixed:
		return 0, broken("it is a VHD of fixed size without its end: it is cut short")
	case be.Uint32(b[60:]) != vhdDynamic:
		return 0, other("is a differencing VHD, which is based on another file")
	}
	virtual := be.Uint64(b[48:])
	if virtual > 1<<62 {
		return 0, broken("its header says that the disk has %d bytes", virtual)
	}
	return int64(virtual), nil
}

// checkVMDK reads the header of a hosted sparse extent and the descriptor in it
// (VMware, Virtual Disk Format 5.0; little-endian).
func checkVMDK(r io.ReaderAt, size int64) (int64, error) {
	b, err := window(r, 0, 512)
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	if len(b) < 512 || string(b[:4]) != "KDMV" {
		return 0, broken("its VMDK header is cut short")
	}
	const mostDescriptor = 128 // sectors
	capacity, at, sectors := le.Uint64(b[12:]), le.Uint64(b[28:]), le.Uint64(b[36:])
	switch {
	case capacity == 0:
		// QEMU would then take the descriptor's word for which files there are.
		return 0, other("is a VMDK whose data is in other files")
	case capacity > 1<<53:
		return 0, broken("its header says that the disk has %d sectors", capacity)
	case at == 0 || sectors == 0 || sectors > mostDescriptor || at > 1<<40 || int64(at+sectors)*512 > size:
		return 0, broken("it has no VMDK descriptor of its own")
	}
	text, err := window(r, int64(at)*512, int(sectors)*512)
	if err != nil {
		return 0, err
	}
	return int64(capacity) * 512, checkDescriptor(string(text))
}

// checkDescriptor refuses a descriptor that names more than the extent that it is in.
func checkDescriptor(text string) error {
	text, _, _ = strings.Cut(text, "\x00")
	extents := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.ToLower(strings.Trim(strings.TrimSpace(value), `"`))
		switch {
		case key == "parentfilenamehint", key == "parentcid" && value != "ffffffff":
			return other("is a VMDK based on another file")
		case key == "createtype" && value != "monolithicsparse" && value != "streamoptimized":
			return other("is a VMDK whose data is in other files")
		}
		for _, access := range []string{"RW ", "RDONLY ", "NOACCESS "} {
			if strings.HasPrefix(line, access) {
				extents++
			}
		}
	}
	if extents > 1 {
		return other("is a VMDK whose data is in several files")
	}
	return nil
}
