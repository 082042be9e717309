package cloudinit

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/mvmctl/mvm"
)

// Label is the volume label by which cloud-init knows a disk with documents.
const Label = "cidata"

// Geometry of an ISO image (ECMA-119, 8.4): 16 sectors that are not its business, then
// volume descriptors.
const (
	sector      = 2048
	systemArea  = 16 * sector
	labelOffset = 40
	labelLength = 32
)

// WriteISO writes the documents to an ISO image at path, which is only there when
// it is complete. Names have Rock Ridge's form, for "user-data" is none of ISO 9660.
func WriteISO(ctx context.Context, path string, docs Documents) error {
	err := writeISO(ctx, path, docs)
	if err != nil {
		return errors.Join(mvm.Errorf(mvm.ErrUnavailable, "cannot write the cloud-init ISO %s: %w", path, err).WithHint("see whether its disk is full"), RemoveISO(path))
	}
	return nil
}

// What stands beside an ISO while it is written: the tree that it is made of, and
// as much of it as there is.
const (
	treeSuffix = ".tree"
	partSuffix = ".part"
)

// RemoveISO removes an ISO that WriteISO made or was killed over. One that is not
// there is fine.
func RemoveISO(path string) error {
	return errors.Join(remove(path), remove(path+partSuffix), os.RemoveAll(path+treeSuffix))
}

func writeISO(ctx context.Context, path string, docs Documents) error {
	work, part := path+treeSuffix, path+partSuffix
	if err := RemoveISO(path); err != nil {
		return err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	iso, err := iso9660.Create(file.New(f, false), 0, 0, sector, work)
	if err != nil {
		return err
	}
	for _, name := range names {
		if data, ok := docs[name]; ok {
			if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: Label}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(part, path)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// CheckISO says whether a user's own file can serve as the disk with documents: a
// regular file that is an ISO 9660 image with the label. Errors: mvm.ErrNotFound,
// mvm.ErrInvalid; each with a hint.
func CheckISO(path string) error {
	st, err := os.Stat(path) // before opening: a FIFO would keep us waiting
	switch {
	case errors.Is(err, os.ErrNotExist):
		return mvm.Errorf(mvm.ErrNotFound, "the cloud-init ISO %s is not there", mvm.Quote(path)).WithHint("name an ISO 9660 image with the label %s", Label)
	case err != nil:
		return mvm.Errorf(mvm.ErrInvalid, "the cloud-init ISO %s cannot be read: %w", mvm.Quote(path), err).WithHint("see whether the file can be read by you")
	case !st.Mode().IsRegular():
		return mvm.Errorf(mvm.ErrInvalid, "the cloud-init ISO %s is no regular file", mvm.Quote(path)).WithHint("name an ISO 9660 image with the label %s", Label)
	}
	label, err := isoLabel(path)
	switch {
	case err != nil:
		return mvm.Errorf(mvm.ErrInvalid, "%s is no ISO 9660 image: %w", mvm.Quote(path), err).
			WithHint("make one with 'xorriso -as genisoimage -output FILE -volid %s -rational-rock user-data meta-data', or leave it to mvm with --cloudinit-config", Label)
	case !strings.EqualFold(label, Label):
		return mvm.Errorf(mvm.ErrInvalid, "the ISO %s has the label %s, by which cloud-init does not know it", mvm.Quote(path), mvm.Quote(label)).
			WithHint("make it with the label %s", Label)
	}
	return nil
}

var errNoVolume = errors.New("it has no primary volume descriptor")

// isoLabel reads the volume identifier of the primary volume descriptor, which has
// to be the first descriptor (ECMA-119, 6.7.1.1).
func isoLabel(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	var d [sector]byte
	_, err = f.ReadAt(d[:], systemArea)
	if errors.Is(err, io.EOF) {
		return "", errNoVolume
	}
	if err != nil {
		return "", err
	}
	if string(d[:6]) != "\x01CD001" {
		return "", errNoVolume
	}
	return strings.TrimRight(string(d[labelOffset:labelOffset+labelLength]), " \x00"), nil
}
