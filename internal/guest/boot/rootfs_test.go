package boot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/testenv"
)

// tree makes a root directory beside files that must never change, and returns
// both.
func tree(t *testing.T, build func(root string)) (*Rootfs, string) {
	t.Helper()
	base := t.TempDir()
	root := filepath.Join(base, "root")
	outside := filepath.Join(base, "outside")
	for _, d := range []string{root, outside, filepath.Join(base, "run")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{filepath.Join(base, "hostname"), filepath.Join(outside, "authorized_keys")} {
		if err := os.WriteFile(f, []byte("host"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build(root)
	r, err := OpenRootfs(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.Close()
		checkOutside(t, base)
	})
	return r, root
}

func checkOutside(t *testing.T, base string) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == filepath.Join(base, "root") {
			return fs.SkipDir
		}
		if !d.IsDir() {
			data, err := os.ReadFile(p)
			got = append(got, strings.TrimPrefix(p, base)+"="+string(data))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "/hostname=host /outside/authorized_keys=host"; strings.Join(got, " ") != want {
		t.Errorf("files outside of the root are now %q, want %q", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWriteFileStaysInside(t *testing.T) {
	for _, tc := range []struct {
		name  string
		build func(root string) error
		write string // path as asked
		at    string // where the file has to be, below the root; "" when it must fail
	}{
		{"plain", func(string) error { return nil }, "/etc/hostname", "etc/hostname"},
		{"final absolute link", func(r string) error {
			return errors.Join(os.Mkdir(r+"/etc", 0o755), os.WriteFile(r+"/etc/passwd", []byte("x"), 0o644), os.Symlink("/etc/passwd", r+"/etc/hostname"))
		}, "/etc/hostname", "etc/hostname"},
		{"final link out", func(r string) error {
			return errors.Join(os.Mkdir(r+"/etc", 0o755), os.Symlink("../../hostname", r+"/etc/hostname"))
		}, "/etc/hostname", "etc/hostname"},
		{"directory is parent of the root", func(r string) error { return os.Symlink("..", r+"/etc") }, "/etc/hostname", "hostname"},
		{"directory far above", func(r string) error { return os.Symlink("../../../../../..", r+"/etc") }, "/etc/hostname", "hostname"},
		{"directory link absolute", func(r string) error {
			return errors.Join(os.Mkdir(r+"/root", 0o700), os.Symlink("/outside", r+"/root/.ssh"))
		}, "/root/.ssh/authorized_keys", "outside/authorized_keys"},
		{"directory link relative out", func(r string) error {
			return errors.Join(os.Mkdir(r+"/root", 0o700), os.Symlink("../../outside", r+"/root/.ssh"))
		}, "/root/.ssh/authorized_keys", "outside/authorized_keys"},
		{"var/run", func(r string) error {
			return errors.Join(os.Mkdir(r+"/var", 0o755), os.Symlink("/run", r+"/var/run"))
		}, "/var/run/a/b", "run/a/b"},
		{"chain of dangling links", func(r string) error {
			return errors.Join(os.Symlink("b", r+"/a"), os.Symlink("/c/../d", r+"/b"), os.Mkdir(r+"/c", 0o755))
		}, "/a/f", "d/f"},
		{"FIFO at the target", func(r string) error {
			return errors.Join(os.Mkdir(r+"/etc", 0o755), unix.Mkfifo(r+"/etc/hostname", 0o644))
		}, "/etc/hostname", "etc/hostname"},
		{"loop at the target", func(r string) error { return os.Symlink("f", r+"/f") }, "/f", "f"},
		{"dots in the path", func(string) error { return nil }, "/../../etc/hostname", "etc/hostname"},
		{"loop above the target", func(r string) error { return os.Symlink("etc", r+"/etc") }, "/etc/hostname", ""},
		{"two links in a loop", func(r string) error {
			return errors.Join(os.Symlink("/b/x", r+"/a"), os.Symlink("/a/x", r+"/b"))
		}, "/a/f", ""},
		{"file above the target", func(r string) error { return os.WriteFile(r+"/etc", nil, 0o644) }, "/etc/hostname", ""},
		{"directory at the target", func(r string) error { return os.MkdirAll(r+"/etc/hostname", 0o755) }, "/etc/hostname", ""},
		{"nothing named", func(string) error { return nil }, "/", ""},
		{"parent named", func(string) error { return nil }, "/etc/..", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, root := tree(t, func(root string) { must(t, tc.build(root)) })
			err := r.WriteFile(tc.write, []byte("new"), 0o640, Owner{uint32(os.Geteuid()), uint32(os.Getegid())})
			if tc.at == "" {
				if err == nil {
					t.Error("the write succeeded")
				}
				return
			}
			must(t, err)
			st, err := os.Lstat(filepath.Join(root, tc.at))
			must(t, err)
			if st.Mode() != 0o640 {
				t.Errorf("mode %v, want a regular file with 0640", st.Mode())
			}
			if data, _ := os.ReadFile(filepath.Join(root, tc.at)); string(data) != "new" {
				t.Errorf("content %q", data)
			}
			left, _ := filepath.Glob(filepath.Join(root, filepath.Dir(tc.at), ".*.mvm-tmp"))
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestWriteFileReplacesDevice(t *testing.T) {
	testenv.Require(t, "root")
	r, root := tree(t, func(root string) {
		if err := unix.Mknod(root+"/f", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			t.Skipf("making a device node: %v", err)
		}
	})
	must(t, r.WriteFile("/f", []byte("new"), 0o644, Owner{}))
	if st, err := os.Lstat(root + "/f"); err != nil || !st.Mode().IsRegular() {
		t.Errorf("%v %v, want a regular file", st.Mode(), err)
	}
}

func TestReadFileTouchesRegularFilesOnly(t *testing.T) {
	r, root := tree(t, func(root string) {
		must(t, errors.Join(
			os.WriteFile(root+"/real", []byte("inside"), 0o644),
			os.Symlink("/real", root+"/link"),
			os.Symlink("/../hostname", root+"/out"),
			unix.Mkfifo(root+"/fifo", 0o644),
			os.Mkdir(root+"/dir", 0o755),
			os.Symlink("loop", root+"/loop")))
	})
	if data, err := r.ReadFile("/link"); err != nil || string(data) != "inside" {
		t.Errorf("link inside: %q, %v", data, err)
	}
	for _, p := range []string{"/out", "/fifo", "/dir", "/loop", "/missing"} {
		if data, err := r.ReadFile(p); err == nil {
			t.Errorf("%s was read: %q", p, data)
		}
	}
	must(t, os.Truncate(root+"/real", maxRead+1))
	if _, err := r.ReadFile("/real"); !errors.Is(err, unix.EFBIG) {
		t.Errorf("a file that is too long: %v", err)
	}
}

func TestRemoveRemovesTheLinkItself(t *testing.T) {
	r, root := tree(t, func(root string) {
		must(t, errors.Join(os.WriteFile(root+"/real", nil, 0o644), os.Symlink("/real", root+"/link")))
	})
	must(t, r.Remove("/link"))
	must(t, r.Remove("/link"))
	must(t, r.Remove("/no/such/directory"))
	if _, err := os.Lstat(root + "/link"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link is there: %v", err)
	}
	if _, err := os.Lstat(root + "/real"); err != nil {
		t.Error(err)
	}
}
