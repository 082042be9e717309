package binary

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path"

	"github.com/mvmctl/mvm"
)

const (
	maxArchive  = 256 << 20
	maxProgram  = 256 << 20
	maxUnpacked = 2 << 30 // of the whole archive, debug files included
)

// extract writes the wanted entries of a .tgz, by name in the archive, to the
// files given, with mode 0755. Only regular entries with exactly these names
// are looked at, so that nothing in the archive decides where a file goes.
func extract(ctx context.Context, archive string, wanted map[string]string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return damaged(err)
	}
	done := map[string]bool{}
	r := tar.NewReader(io.LimitReader(z, maxUnpacked))
	for len(done) < len(wanted) {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			for name := range wanted {
				if !done[name] {
					return mvm.Errorf(mvm.ErrBroken, "the archive has no %s", name).WithHint("is it a release of Firecracker?")
				}
			}
		}
		if err != nil {
			return damaged(err)
		}
		name := path.Clean(h.Name)
		dest, ok := wanted[name]
		if !ok || h.Typeflag != tar.TypeReg || done[name] {
			continue
		}
		if h.Size > maxProgram {
			return damaged(errors.New(name + " is too large"))
		}
		if err := writeProgram(dest, r); err != nil {
			return err
		}
		done[name] = true
	}
	return nil
}

func writeProgram(dest string, r io.Reader) error {
	f, err := os.OpenFile(dest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) {
		return damaged(err)
	}
	return err
}

func damaged(err error) error {
	return mvm.Errorf(mvm.ErrBroken, "the archive is damaged: %w", err).WithHint("pull it again")
}
