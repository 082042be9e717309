package disk

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
)

// The qcow2 format, as in QEMU's docs/interop/qcow2.txt. All numbers are
// big-endian.
const (
	qcowMagic       = 0x514649fb // "QFI\xfb"
	qcowHeaderBytes = 104        // version 3 without the optional fields
	extBackingFmt   = 0xe2792aca
	maxBackingName  = 1023
	clusterBits     = 16
	clusterBytes    = 1 << clusterBits
	// One L1 entry stands for a table of cluster/8 entries of a cluster each.
	l1EntryBytes = clusterBytes / 8 * clusterBytes
)

// maxVirtual keeps every table of an empty overlay within the first refcount
// block (32,768 clusters), and off_t arithmetic away from its end.
const maxVirtual = 64 << 40

// detect tells the formats that we know by the file's first bytes.
func detect(r io.ReaderAt) (string, error) {
	var b [8]byte
	if n, err := r.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	} else if n == len(b) && binary.BigEndian.Uint32(b[:]) == qcowMagic {
		return Qcow2, nil
	}
	return Raw, nil
}

// virtualSize returns how large a guest sees the disk.
func virtualSize(f *os.File) (int64, error) {
	format, err := detect(f)
	if err != nil {
		return 0, err
	}
	if format == Qcow2 {
		return qcowSize(f)
	}
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// qcowSize reads the virtual size out of a qcow2 header.
func qcowSize(r io.ReaderAt) (int64, error) {
	var b [72]byte // the header of version 2
	if _, err := r.ReadAt(b[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			err = mvm.Errorf(mvm.ErrBroken, "its qcow2 header is cut short").WithHint("get the file again")
		}
		return 0, err
	}
	version, size := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[24:])
	if version != 2 && version != 3 {
		return 0, mvm.Errorf(mvm.ErrUnsupported, "qcow2 version %d is not known", version).WithHint("convert it with 'qemu-img convert -O qcow2'")
	}
	if size > 1<<62 {
		return 0, mvm.Errorf(mvm.ErrBroken, "its qcow2 header says %d bytes", size).WithHint("get the file again")
	}
	return int64(size), nil
}

// overlayHeader returns the metadata of an empty overlay of size bytes, on nothing
// where backing is "": the header, the refcount table, one refcount block and the L1 table, each at a
// cluster of its own. What it leaves out is zero, and a hole in the file.
func overlayHeader(backing, format string, size int64) (head, refcounts []byte, clusters int64) {
	be := binary.BigEndian
	l1Entries := (size + l1EntryBytes - 1) / l1EntryBytes
	l1Clusters := (l1Entries*8 + clusterBytes - 1) / clusterBytes
	clusters = 3 + max(l1Clusters, 1)

	head = make([]byte, qcowHeaderBytes, 2*qcowHeaderBytes+len(backing))
	be.PutUint32(head[0:], qcowMagic)
	be.PutUint32(head[4:], 3)
	be.PutUint32(head[16:], uint32(len(backing)))
	be.PutUint32(head[20:], clusterBits)
	be.PutUint64(head[24:], uint64(size))
	be.PutUint32(head[36:], uint32(l1Entries))
	be.PutUint64(head[40:], 3*clusterBytes) // L1 table
	be.PutUint64(head[48:], 1*clusterBytes) // refcount table
	be.PutUint32(head[56:], 1)              // its clusters
	be.PutUint32(head[96:], 4)              // refcounts of 1 << 4 bits
	be.PutUint32(head[100:], qcowHeaderBytes)

	if backing != "" {
		head = be.AppendUint32(head, extBackingFmt)
		head = be.AppendUint32(head, uint32(len(format)))
		head = append(head, format...)
		head = append(head, make([]byte, -len(head)&7)...) // extensions are padded to 8 bytes
	}
	head = append(head, make([]byte, 8)...) // the last extension: type 0, length 0
	if backing != "" {
		be.PutUint64(head[8:], uint64(len(head)))
		head = append(head, backing...)
	}

	for range clusters {
		refcounts = be.AppendUint16(refcounts, 1)
	}
	return head, refcounts, clusters
}

// backingName returns how dst names base: relative, so that a cache directory
// can be moved as a whole. QEMU resolves it against the directory of the
// overlay; the leading dot keeps a colon in it from naming a protocol.
func backingName(base, dst string) (string, error) {
	from, err := resolved(filepath.Dir(dst))
	if err != nil {
		return "", err
	}
	to, err := resolved(base)
	if err != nil {
		return "", err
	}
	name, err := filepath.Rel(from, to)
	if err != nil {
		return "", err
	}
	if name[0] != '.' || filepath.IsLocal(name) {
		name = "./" + name
	}
	if len(name) > maxBackingName {
		return "", mvm.Errorf(mvm.ErrInvalid, "the way from %s to %s is longer than %d bytes", from, to, maxBackingName).
			WithHint("use a cache directory with a shorter path")
	}
	return name, nil
}

// resolved is the absolute path without symbolic links: ".." behind one leads
// elsewhere than its text says.
func resolved(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}
