package disk

import (
	"context"
	"os"

	"github.com/mvmctl/mvm"
)

// Overlay makes dst an empty qcow2 file on top of base, which is never written.
// baseFormat is Raw or Qcow2 and is recorded, so that QEMU never guesses: a
// guest could otherwise write a header of its own choice into a raw disk. base
// is named relative to dst's directory, so a cache can be moved as a whole.
//
// virtualSize is in bytes, a multiple of 512; 0 is base's own size, and less is
// refused with mvm.ErrInvalid. The other errors are those of Clone.
func Overlay(ctx context.Context, base, baseFormat, dst string, virtualSize int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	size, err := overlaySize(base, baseFormat, virtualSize)
	if err != nil {
		return fault(err, "make a disk on", base, 0)
	}
	backing, err := backingName(base, dst)
	if err != nil {
		return fault(err, "make a disk on", base, 0)
	}
	head, refcounts, clusters := overlayHeader(backing, baseFormat, size)
	err = create(dst, func(f *os.File) error { return writeEmpty(f, head, refcounts, clusters) })
	return fault(err, "make disk", dst, clusterBytes)
}

// writeEmpty writes the metadata of a qcow2 file without data.
func writeEmpty(f *os.File, head, refcounts []byte, clusters int64) error {
	table := []byte{0, 0, 0, 0, 0, 2 * clusterBytes >> 16, 0, 0} // the only block is at cluster 2
	for i, b := range [][]byte{head, table, refcounts} {
		if _, err := f.WriteAt(b, int64(i)*clusterBytes); err != nil {
			return err
		}
	}
	return f.Truncate(clusters * clusterBytes)
}

// overlaySize checks base and returns the size of the overlay in bytes.
func overlaySize(base, baseFormat string, want int64) (int64, error) {
	if baseFormat != Raw && baseFormat != Qcow2 {
		return 0, mvm.Errorf(mvm.ErrInvalid, "its format %q is not known", baseFormat).WithHint("use raw or qcow2")
	}
	f, err := os.Open(base)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	have := (st.Size() + 511) &^ 511 // QEMU rounds a raw file up to sectors
	if baseFormat == Qcow2 {
		if have, err = qcowSize(f); err != nil {
			return 0, err
		}
	}
	if want == 0 {
		want = have
	}
	switch {
	case want < have:
		return 0, mvm.Errorf(mvm.ErrInvalid, "%s is less than the %s that it has", human(want), human(have)).
			WithHint("ask for a disk of %s or more", human(have))
	case want%512 != 0 || want <= 0 || want > maxVirtual:
		return 0, mvm.Errorf(mvm.ErrInvalid, "a disk cannot have %d bytes", want).
			WithHint("use a multiple of 512 up to %s", human(maxVirtual))
	}
	return want, nil
}
