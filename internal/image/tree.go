package image

import (
	"errors"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// tree is the file tree of an image while it is being made. What is in it came
// out of packages and is not trusted: os.Root refuses every path that leaves
// the tree by "..", by a link or by a race, and the last part of a path is
// never followed when something is written.
type tree struct {
	root *os.Root
	// own sets the owner to 0:0, which only root can; for others mke2fs does it
	// for the files that are ours.
	own bool
}

func openTree(dir string) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &tree{root: root, own: os.Geteuid() == 0}, nil
}

func (t *tree) Close() error { return t.root.Close() }

// mkdir makes a directory and its parents; one that is there, or a link within
// the tree to one, is kept and gets the mode.
func (t *tree) mkdir(name string, mode fs.FileMode) error {
	if err := t.root.MkdirAll(name, 0o755); err != nil {
		return t.escape(name, err)
	}
	if t.own {
		if err := t.root.Chown(name, 0, 0); err != nil {
			return t.escape(name, err)
		}
	}
	return t.escape(name, t.root.Chmod(name, mode))
}

// write makes the file name, in place of whatever has that name: a link is
// replaced and not followed.
func (t *tree) write(name, content string, mode fs.FileMode) error {
	if err := t.clear(name); err != nil {
		return err
	}
	f, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return t.escape(name, err)
	}
	_, err = f.WriteString(content)
	if t.own {
		err = errors.Join(err, f.Chown(0, 0))
	}
	return errors.Join(err, f.Chmod(mode), f.Close()) // the mode last: a change of owner clears bits
}

// symlink makes name a link to target, which is only text here.
func (t *tree) symlink(target, name string) error {
	if err := t.clear(name); err != nil {
		return err
	}
	return t.escape(name, t.root.Symlink(target, name))
}

// clear removes what has the name, and makes its parents.
func (t *tree) clear(name string) error {
	if err := t.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return t.escape(name, err)
	}
	return t.escape(name, t.root.RemoveAll(name))
}

// escape says of an error without an errno, which is how os.Root refuses a path,
// that the tree is at fault and not the host.
func (t *tree) escape(name string, err error) error {
	var errno unix.Errno
	if err == nil || errors.As(err, &errno) {
		return err
	}
	return mvm.Errorf(mvm.ErrInvalid, "the packages hold a link that leads %s out of the image: %w", name, err).
		WithHint("check the package sources in /etc/apt/sources.list and /etc/apt/sources.list.d")
}
