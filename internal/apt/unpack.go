package apt

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// UnpackOptions say what of a package is unpacked, and how.
type UnpackOptions struct {
	// Filter is asked about each entry by its clean relative name
	// ("boot/vmlinuz-6.1.0") and returns where it goes ("" leaves it out).
	// A nil Filter keeps everything. Directories on the way are made as needed.
	Filter func(name string) string
	// Owner gives files the owner and the set-user-id bits of the package,
	// which needs root. Without it they are ours and have plain permissions.
	Owner bool
}

// maxUnpacked bounds what a package may grow to, in bytes.
const maxUnpacked = 8 << 30

// Unpack unpacks the files of a package below dir, which must exist. No script
// of the package runs. No path leaves dir, whatever names and links the package
// holds: an entry that would is refused with mvm.ErrInvalid.
func Unpack(ctx context.Context, r run.Runner, deb, dir string, o UnpackOptions) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot unpack into %s: %w", dir, err).WithHint("make the directory first")
	}
	defer func() { _ = root.Close() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pr, pw := io.Pipe()
	read := make(chan error, 1)
	go func() {
		err := extract(root, pr, o)
		if err == nil {
			_, err = io.Copy(io.Discard, pr) // the padding after the last entry
		}
		if err != nil {
			cancel(err) // the tool would wait for a reader
		}
		_ = pr.CloseWithError(err)
		read <- err
	}()
	_, toolErr := r.Run(ctx, run.Cmd{Name: "dpkg-deb", Args: []string{"--fsys-tarfile", deb}, Stdout: pw})
	if toolErr != nil {
		_ = pw.CloseWithError(errTool)
	} else {
		_ = pw.Close()
	}
	readErr := <-read
	if readErr != nil && !errors.Is(readErr, errTool) { // also when the tool failed: because nobody read on
		return mvm.Errorf(kindOf(readErr), "cannot unpack %s: %w", deb, readErr).WithHint("check the package, and the free space of %s", dir)
	}
	if _, ok := isTool(toolErr); ok {
		return mvm.Errorf(mvm.ErrInvalid, "cannot read the package %s: %w", deb, toolErr).WithHint("remove the file and try again")
	}
	return toolErr
}

// errTool tells the reader of a package that the tool which writes it failed.
var errTool = errors.New("the unpacking tool failed")

// kindOf tells a package that can never be unpacked from a host that cannot
// take it now: os.Root refuses a path that leaves it with a PathError whose
// cause is no errno.
func kindOf(err error) mvm.Kind {
	var errno syscall.Errno
	var pathErr *fs.PathError
	switch {
	case errors.As(err, &errno):
		return mvm.ErrUnavailable
	case errors.Is(err, mvm.ErrInvalid), errors.As(err, &pathErr):
		return mvm.ErrInvalid
	}
	return mvm.ErrUnavailable
}

// extract writes the entries of a tar stream below root.
func extract(root *os.Root, r io.Reader, o UnpackOptions) error {
	tr := tar.NewReader(r)
	var total int64
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		if name == "." || name == "/" {
			continue
		}
		if !fs.ValidPath(name) {
			return mvm.Errorf(mvm.ErrInvalid, "the entry %q leaves the package", h.Name)
		}
		to := name
		if o.Filter != nil {
			if to = o.Filter(name); to == "" {
				continue
			}
		}
		if total += h.Size; total > maxUnpacked {
			return mvm.Errorf(mvm.ErrInvalid, "it holds more than %d GiB", maxUnpacked>>30)
		}
		if err := entry(root, tr, h, to, o); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// entry writes one entry as name. What is there already is replaced, except a
// directory, or a link to one, where a directory comes (as dpkg does it).
func entry(root *os.Root, r io.Reader, h *tar.Header, name string, o UnpackOptions) error {
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		if st, err := root.Stat(name); err != nil || !st.IsDir() {
			if err := root.Mkdir(name, 0o755); err != nil {
				return err
			}
		}
		return attributes(root, h, name, o)
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		return attributes(root, h, name, o)
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		if o.Owner {
			return root.Lchown(name, h.Uid, h.Gid)
		}
		return nil
	case tar.TypeLink:
		old := path.Clean(strings.TrimPrefix(h.Linkname, "./"))
		if o.Filter != nil {
			if old = o.Filter(old); old == "" {
				return mvm.Errorf(mvm.ErrInvalid, "it is a hard link to %s, which was left out", h.Linkname)
			}
		}
		return root.Link(old, name)
	}
	return mvm.Errorf(mvm.ErrInvalid, "entries of type %q are not for packages", h.Typeflag)
}

// attributes gives a file or directory its owner and mode.
func attributes(root *os.Root, h *tar.Header, name string, o UnpackOptions) error {
	mode := h.FileInfo().Mode() & fs.ModePerm
	if o.Owner {
		// Changing the owner clears the set-user-id bits: it comes first.
		if err := root.Chown(name, h.Uid, h.Gid); err != nil {
			return err
		}
		mode = h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
	return root.Chmod(name, mode)
}
