package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
)

// CloneDisk is Clone for a disk of a VM in a known format. A qcow2 overlay names its
// base relative to its own directory; the clone, which may lie elsewhere, gets a
// name that leads to the same file.
func CloneDisk(ctx context.Context, src, format, dst string) error {
	if format != Qcow2 {
		return Clone(ctx, src, dst)
	}
	base, err := BackingFile(src)
	if err != nil {
		return err
	}
	if base == "" {
		return Clone(ctx, src, dst)
	}
	name, err := backingName(base, dst)
	if err != nil {
		return fault(err, "clone disk", src, 0)
	}
	return cloneFile(ctx, src, dst, func(f *os.File) error { return setBacking(f, name) })
}

// BackingFile returns the absolute path of the file that a qcow2 file is based on,
// "" when it is based on none.
func BackingFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fault(err, "read disk", path, 0)
	}
	defer func() { _ = f.Close() }()
	name, err := backingOf(f)
	if err != nil || name == "" {
		return "", fault(err, "read disk", path, 0)
	}
	if filepath.IsAbs(name) {
		return filepath.Clean(name), nil
	}
	dir, err := resolved(filepath.Dir(path))
	if err != nil {
		return "", fault(err, "read disk", path, 0)
	}
	return filepath.Join(dir, name), nil
}

// backingOf reads the name of the base out of a qcow2 header.
func backingOf(r io.ReaderAt) (string, error) {
	var b [24]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return "", cutShort(err)
	}
	be := binary.BigEndian
	if be.Uint32(b[0:]) != qcowMagic {
		return "", mvm.Errorf(mvm.ErrBroken, "it is no qcow2 file").WithHint("the disk was damaged or replaced")
	}
	off, size := be.Uint64(b[8:]), be.Uint32(b[16:])
	if off == 0 || size == 0 {
		return "", nil
	}
	if size > maxBackingName || off < qcowHeaderV2 || off > clusterBytes {
		return "", mvm.Errorf(mvm.ErrBroken, "its qcow2 header names a base of %d bytes at %d", size, off).WithHint("the disk was damaged or replaced")
	}
	name := make([]byte, size)
	if _, err := r.ReadAt(name, int64(off)); err != nil {
		return "", cutShort(err)
	}
	return string(name), nil
}

const qcowHeaderV2 = 72

func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return mvm.Errorf(mvm.ErrBroken, "its qcow2 header is cut short").WithHint("the disk was damaged")
	}
	return err
}

// setBacking writes another name of the base into a qcow2 header. The name is the
// last thing in the first cluster, as overlayHeader and qemu-img lay it out, so
// that it may grow up to the cluster's end.
func setBacking(f *os.File, name string) error {
	var b [24]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return cutShort(err)
	}
	be := binary.BigEndian
	off, size, bits := be.Uint64(b[8:]), be.Uint32(b[16:]), be.Uint32(b[20:])
	if bits < 9 || bits > 21 || off+uint64(len(name)) > 1<<bits {
		return mvm.Errorf(mvm.ErrUnsupported, "its header has no room for a base named %s", mvm.Quote(name)).WithHint("use a cache directory with a shorter path")
	}
	padded := append([]byte(name), make([]byte, max(0, int(size)-len(name)))...) //nolint:gosec // at most maxBackingName, backingOf has checked it
	if _, err := f.WriteAt(padded, int64(off)); err != nil {                     //nolint:gosec // within the first cluster
		return err
	}
	_, err := f.WriteAt(be.AppendUint32(nil, uint32(len(name))), 16) //nolint:gosec // at most maxBackingName
	return err
}
