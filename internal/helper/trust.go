package helper

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mvmctl/mvm"
)

// CheckTrusted refuses a file that others than root could have put in place: it and
// every directory above it have to be root's, writable by nobody else, and no symlink.
func CheckTrusted(path string) error { return checkTrusted("/", path) }

// checkTrusted begins below a directory that is trusted as it is.
func checkTrusted(root, path string) error {
	rel, err := filepath.Rel(root, path)
	if err != nil || !filepath.IsAbs(path) || !filepath.IsLocal(rel) {
		return mvm.Errorf(mvm.ErrInvalid, "%s is not below %s", mvm.Quote(path), root)
	}
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		if err := trusted(at, at == filepath.Clean(path)); err != nil {
			return err
		}
		if at == filepath.Clean(root) {
			return nil
		}
	}
}

func trusted(path string, last bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot look at %s: %w", path, err)
	}
	const othersWrite = 0o022
	why := ""
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		why = "is a symlink"
	case !ok || st.Uid != 0:
		why = "does not belong to root"
	case info.Mode().Perm()&othersWrite != 0:
		why = "can be written by others than root"
	case last && !info.Mode().IsRegular(), !last && !info.IsDir():
		why = "is neither a file nor a directory"
	default:
		return nil
	}
	return mvm.Errorf(mvm.ErrPrivilege, "%s %s, so that root must not run what is there", path, why).
		WithHint("mend it with 'chown root' and 'chmod go-w', then have root run 'mvm host init' again")
}

// CheckTrustedDir is CheckTrusted for a directory.
func CheckTrustedDir(path string) error {
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		if err := trusted(at, false); err != nil {
			return err
		}
		if at == "/" {
			return nil
		}
	}
}
