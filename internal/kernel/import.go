package kernel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
)

// Imported is a kernel file that was copied into our own directory.
type Imported struct {
	Path    string // destDir/vmlinux, or destDir/bzImage where the ELF kernel could not be taken out
	Info    Info   // of the file at Path
	Warning string // what the user should know; mostly ""
}

// Import checks that src is a bootable kernel and copies it into destDir, which
// is made if missing. A bzImage is copied as the ELF kernel in it, because
// Firecracker boots nothing else, and because it boots faster; one packed in a
// way that we cannot unpack is kept as it is, for QEMU, with a warning.
// Modules are not imported: such a kernel needs virtio and the root's file
// system built in.
//
// The errors are those of Inspect; mvm.ErrUnavailable when destDir cannot be written.
func Import(ctx context.Context, src, destDir string) (Imported, error) {
	data, err := readFile(src)
	if err != nil {
		return Imported{}, err
	}
	info, what := inspect(data)
	if what != "" {
		return Imported{}, notKernel(src, what)
	}
	if err := ctx.Err(); err != nil {
		return Imported{}, err
	}
	if err := os.MkdirAll(destDir, 0o755); err != nil {
		return Imported{}, unwritable(destDir, err)
	}
	im := Imported{Path: filepath.Join(destDir, "vmlinux"), Info: info}
	if info.Format == BzImage {
		unpacked, err := unpack(data)
		switch {
		case errors.Is(err, mvm.ErrUnsupported):
			im.Path, im.Warning = filepath.Join(destDir, "bzImage"), "QEMU only: "+err.Error()
		case err != nil:
			return Imported{}, mvm.Wrap(err, "import kernel", src)
		default:
			if im.Info, what = inspect(unpacked); what != "" {
				return Imported{}, notKernel(src, "holds what "+what)
			}
			if im.Info.Version == "" {
				im.Info.Version = info.Version
			}
			data = unpacked
		}
	}
	if err := replace(ctx, im.Path, data); err != nil {
		return Imported{}, unwritable(destDir, err)
	}
	return im, nil
}

// unpack returns the ELF kernel in a bzImage.
func unpack(data []byte) ([]byte, error) {
	var out bytes.Buffer
	err := extract(data, &out)
	return out.Bytes(), err
}

func unwritable(dir string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return mvm.Errorf(mvm.ErrUnavailable, "cannot write the kernel: %w", err).
		WithHint("check the permissions and the free space of %s", dir)
}

// replace writes a large file as a whole, and stops when ctx ends.
func replace(ctx context.Context, path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = io.Copy(f, bytes.NewReader(data))
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close(), ctx.Err()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
