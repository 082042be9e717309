package helper

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mvmctl/mvm/internal/testenv"
)

// What root runs is refused as soon as anybody else could have put it there.
func TestCheckTrusted(t *testing.T) {
	testenv.Require(t, "root")
	for name, tc := range map[string]struct {
		spoil func(dir, file string) error
		ok    bool
	}{
		"all is root's":             {func(_, _ string) error { return nil }, true},
		"the file is writable":      {func(_, f string) error { return os.Chmod(f, 0o775) }, false},
		"by others":                 {func(_, f string) error { return os.Chmod(f, 0o757) }, false},
		"the directory is writable": {func(d, _ string) error { return os.Chmod(d, 0o775) }, false},
		"by others, and sticky":     {func(d, _ string) error { return os.Chmod(d, 0o777|os.ModeSticky) }, false},
		"the file is a user's":      {func(_, f string) error { return os.Chown(f, 1000, 0) }, false},
		"the directory is a user's": {func(d, _ string) error { return os.Chown(d, 1000, 0) }, false},
		"the file is a symlink": {func(d, f string) error {
			if err := os.Rename(f, f+".real"); err != nil {
				return err
			}
			return os.Symlink(f+".real", f)
		}, false},
		"the directory is a symlink": {func(d, _ string) error {
			if err := os.Rename(d, d+".real"); err != nil {
				return err
			}
			return os.Symlink(d+".real", d)
		}, false},
		"the file is a directory": {func(_, f string) error { return os.Remove(f) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "lib", "mvm")
			must(t, os.MkdirAll(dir, 0o755))
			file := filepath.Join(dir, Name)
			must(t, os.WriteFile(file, nil, 0o755))
			must(t, tc.spoil(dir, file))
			if err := checkTrusted(root, file); (err == nil) != tc.ok {
				t.Errorf("it says %v", err)
			}
		})
	}
	if err := checkTrusted("/usr", "/etc/passwd"); err == nil {
		t.Error("a path outside is trusted")
	}
	if err := CheckTrusted("etc/passwd"); err == nil {
		t.Error("a relative path is trusted")
	}
}
