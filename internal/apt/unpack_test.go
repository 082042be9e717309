package apt

import (
	"archive/tar"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// tarTool stands for dpkg-deb --fsys-tarfile on a package with these entries.
type tarTool []tar.Header

func (h tarTool) Run(_ context.Context, c run.Cmd) (run.Result, error) {
	w := tar.NewWriter(c.Stdout)
	for _, e := range h {
		body := "content of " + e.Name
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(body))
		}
		if err := w.WriteHeader(&e); err != nil {
			return run.Result{}, err
		}
		if e.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(body)); err != nil {
				return run.Result{}, err
			}
		}
	}
	return run.Result{}, w.Close()
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }

func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	pkg := tarTool{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "./usr/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "./usr/lib/", Mode: 0o755},
		link("./lib", "usr/lib"),
		{Typeflag: tar.TypeDir, Name: "./lib/", Mode: 0o755}, // stays a link
		file("./lib/a"),
		{Typeflag: tar.TypeLink, Name: "./usr/b", Linkname: "./usr/lib/a"},
		{Typeflag: tar.TypeReg, Name: "./usr/setuid", Mode: 0o4755},
		link("./usr/abs", "/etc/passwd"),
		file("./usr/abs"), // replaces the link, does not follow it
		file("./left/out"),
	}
	keep := func(name string) string {
		if strings.HasPrefix(name, "left") {
			return ""
		}
		return name
	}
	if err := Unpack(t.Context(), pkg, "x.deb", dir, UnpackOptions{Filter: keep}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"usr/lib/a": "content of ./lib/a", "usr/b": "content of ./lib/a", "usr/abs": "content of ./usr/abs"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "left")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left out, but there: %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, "usr/setuid")); err != nil || st.Mode() != 0o755 {
		t.Errorf("mode %v, %v; want no set-user-id bit", st.Mode(), err)
	}
}

func TestUnpackStaysInside(t *testing.T) {
	for name, pkg := range map[string]tarTool{
		"dots":           {file("../evil")},
		"dots inside":    {file("./a/../../evil")},
		"absolute":       {file("/evil")},
		"through a link": {link("./out", ".."), file("./out/evil")},
		"absolute link":  {link("./out", "/"), file("./out/tmp/evil")},
		"hard link":      {{Typeflag: tar.TypeLink, Name: "./h", Linkname: "../victim"}},
		"hard link via":  {link("./out", ".."), {Typeflag: tar.TypeLink, Name: "./h", Linkname: "./out/victim"}},
		"directory":      {link("./out", ".."), {Typeflag: tar.TypeDir, Name: "./out/evil/", Mode: 0o755}},
		"device":         {{Typeflag: tar.TypeChar, Name: "./null", Devmajor: 1, Devminor: 3}},
		"mode of a link": {link("./out", "../victim"), {Typeflag: tar.TypeDir, Name: "./out/", Mode: 0o777}},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "root")
			if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(parent, "victim"), []byte("v"), 0o600)); err != nil {
				t.Fatal(err)
			}
			err := Unpack(t.Context(), pkg, "x.deb", dir, UnpackOptions{})
			if err == nil {
				t.Fatal("unpacked without an error")
			}
			entries, err := os.ReadDir(parent)
			var got []string
			for _, e := range entries {
				got = append(got, e.Name())
			}
			if d := cmp.Diff([]string{"root", "victim"}, got); err != nil || d != "" {
				t.Error(err, d)
			}
			if st, err := os.Stat(filepath.Join(parent, "victim")); err != nil || st.Mode() != 0o600 {
				t.Errorf("the file outside was changed: %v %v", st.Mode(), err)
			}
		})
	}
}

func TestUnpackKinds(t *testing.T) {
	if err := Unpack(t.Context(), tarTool{file("../evil")}, "x.deb", t.TempDir(), UnpackOptions{}); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("a hostile package: %v", err)
	}
	if err := Unpack(t.Context(), tarTool{link("./o", ".."), file("./o/evil")}, "x.deb", t.TempDir(), UnpackOptions{}); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("a hostile link: %v", err)
	}
	if err := Unpack(t.Context(), tarTool{}, "x.deb", filepath.Join(t.TempDir(), "missing"), UnpackOptions{}); !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("a missing directory: %v", err)
	}
	newRepo(t) // needs dpkg-deb
	bad := filepath.Join(t.TempDir(), "bad.deb")
	if err := os.WriteFile(bad, []byte("not a package"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(t.Context(), &run.Host{}, bad, t.TempDir(), UnpackOptions{}); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
		t.Errorf("a file that is no package: %v", err)
	}
}
