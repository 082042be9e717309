// Package treetest is the suite that every way to copy trees has to pass: from host
// to guest, back, and by the guest's own tar.
package treetest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm/internal/guest/tree"
	"github.com/mvmctl/mvm/internal/testenv"
)

// Then is the time that planted files get.
var Then = time.Date(2001, 2, 3, 4, 5, 6, 789_000_000, time.UTC)

// Plant makes a tree: a name with a '/' at its end is a directory, text that begins
// with "->" makes a link. All get the mode and a time long ago.
func Plant(t testing.TB, root string, files map[string]string, mode fs.FileMode) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		link, isLink := strings.CutPrefix(text, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			err = errors.Join(err, os.MkdirAll(p, 0o755))
		case isLink:
			err = errors.Join(err, os.Symlink(link, p))
		default:
			err = errors.Join(err, os.WriteFile(p, []byte(text), 0o600), os.Chmod(p, mode), os.Chtimes(p, Then, Then))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Look reads a tree back as Plant has it.
func Look(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		switch {
		case d.IsDir():
			if rest, err := os.ReadDir(p); err == nil && len(rest) == 0 {
				all[rel+"/"] = ""
			}
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(p)
			all[rel] = "->" + link
			return err
		default:
			data, err := os.ReadFile(p)
			all[rel] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Transfer copies sources to a target.
type Transfer func(sources []string, target tree.Target) (tree.Stats, error)

// Suite runs all cases. Times are kept to precision.
func Suite(t *testing.T, transfer Transfer, precision time.Duration) {
	t.Run("copy", func(t *testing.T) { copies(t, transfer) })
	t.Run("attributes", func(t *testing.T) { attributes(t, transfer, precision) })
	t.Run("owners", func(t *testing.T) { owners(t, transfer) })
}

func copies(t *testing.T, transfer Transfer) {
	src := map[string]string{"d/one": "1", "d/sub/two": "2", "d/sub/link": "->../one", "d/empty/": "", "file": "f", "other": "o", "link": "->file"}
	for _, c := range []struct {
		name    string
		sources []string
		there   map[string]string // below dst
		target  tree.Target       // Path relative to dst
		want    map[string]string // nil: as it was
		code    tree.Code
		path    string // of the error, below dst or the sources
	}{
		{name: "file into a directory", sources: []string{"file"}, want: map[string]string{"file": "f"}},
		{name: "file under a new name", sources: []string{"file"}, target: tree.Target{Path: "new"}, want: map[string]string{"new": "f"}},
		{name: "link that is named is followed", sources: []string{"link"}, want: map[string]string{"link": "f"}},
		{name: "tree into a directory", sources: []string{"d"}, want: map[string]string{"d/one": "1", "d/sub/two": "2", "d/sub/link": "->../one", "d/empty/": ""}},
		{name: "tree under a new name", sources: []string{"d/"}, target: tree.Target{Path: "n"}, want: map[string]string{"n/one": "1", "n/sub/two": "2", "n/sub/link": "->../one", "n/empty/": ""}},
		{name: "several", sources: []string{"file", "other"}, target: tree.Target{Dir: true}, want: map[string]string{"file": "f", "other": "o"}},
		{name: "merged", sources: []string{"d"}, there: map[string]string{"d/sub/three": "3", "x": "x"},
			want: map[string]string{"d/one": "1", "d/sub/two": "2", "d/sub/three": "3", "d/sub/link": "->../one", "d/empty/": "", "x": "x"}},
		{name: "replaced", sources: []string{"file"}, there: map[string]string{"file": "old"}, target: tree.Target{Force: true}, want: map[string]string{"file": "f"}},
		{name: "replaced through a link", sources: []string{"file"}, there: map[string]string{"l": "->real", "real": "old"}, target: tree.Target{Path: "l", Force: true}, want: map[string]string{"l": "->real", "real": "f"}},
		{name: "in the way", sources: []string{"file"}, there: map[string]string{"file": "old"}, code: tree.Exists, path: "file"},
		{name: "in the way, named", sources: []string{"other"}, there: map[string]string{"file": "old"}, target: tree.Target{Path: "file"}, code: tree.Exists, path: "file"},
		{name: "in the way deep down", sources: []string{"d"}, there: map[string]string{"d/sub/two": "old"}, code: tree.Exists, path: "d/sub/two"},
		{name: "directory in the way of a file", sources: []string{"file"}, there: map[string]string{"file/": ""}, target: tree.Target{Force: true}, code: tree.Exists, path: "file"},
		{name: "file in the way of a directory", sources: []string{"d"}, there: map[string]string{"d": "x"}, target: tree.Target{Force: true}, code: tree.NotDir, path: "d"},
		{name: "link in the way of a directory", sources: []string{"d"}, there: map[string]string{"d": "->/tmp"}, target: tree.Target{Force: true}, code: tree.NotDir, path: "d"},
		{name: "several onto a file", sources: []string{"file", "other"}, there: map[string]string{"x": "x"}, target: tree.Target{Path: "x", Dir: true}, code: tree.NotDir, path: "x"},
		{name: "into what is not there", sources: []string{"file"}, target: tree.Target{Path: "no/"}, code: tree.NotDir, path: "no/"},
		{name: "below what is not there", sources: []string{"file"}, target: tree.Target{Path: "no/x"}, code: tree.NotDir, path: "no"},
		{name: "no such source", sources: []string{"none"}, code: tree.NotFound, path: "none"},
		{name: "no such source after another", sources: []string{"d", "none"}, target: tree.Target{Dir: true}, code: tree.NotFound, path: "none"},
		{name: "one name twice", sources: []string{"file", "d/../file"}, target: tree.Target{Dir: true}, code: tree.Exists, path: "file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			from, to := t.TempDir(), t.TempDir()
			Plant(t, from, src, 0o640)
			Plant(t, to, c.there, 0o644)
			before := Look(t, to)
			var sources []string
			for _, s := range c.sources {
				sources = append(sources, from+"/"+s)
			}
			c.target.Path = to + "/" + c.target.Path
			_, err := transfer(sources, c.target)
			var e *tree.Error
			switch {
			case c.code == "" && err != nil:
				t.Fatal(err)
			case c.code != "" && !errors.As(err, &e):
				t.Fatalf("%v, want %s", err, c.code)
			case c.code != "" && (e.Code != c.code || e.Path != to+"/"+c.path && e.Path != from+"/"+c.path):
				t.Errorf("%s on %s, want %s on %s", e.Code, e.Path, c.code, c.path)
			}
			want := c.want
			if c.code != "" {
				want = before
			}
			if d := cmp.Diff(want, Look(t, to)); d != "" {
				t.Error(d)
			}
		})
	}
}

func attributes(t *testing.T, transfer Transfer, precision time.Duration) {
	from, to := t.TempDir(), t.TempDir()
	Plant(t, from, map[string]string{"d/run": "x", "d/ro/file": "y"}, 0o751)
	for _, name := range []string{"d/ro", "d"} {
		if err := errors.Join(os.Chmod(from+"/"+name, 0o550), os.Chtimes(from+"/"+name, Then, Then)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, d := range []string{from, to} {
			_ = errors.Join(os.Chmod(d+"/d", 0o700), os.Chmod(d+"/d/ro", 0o700))
		}
	})
	if _, err := transfer([]string{from + "/d"}, tree.Target{Path: to}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"d": fs.ModeDir | 0o550, "d/ro": fs.ModeDir | 0o550, "d/run": 0o751, "d/ro/file": 0o751} {
		fi, err := os.Stat(to + "/" + name)
		if err != nil || fi.Mode() != mode || fi.ModTime().Sub(Then).Abs() > precision {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
}

func owners(t *testing.T, transfer Transfer) {
	testenv.Require(t, "root")
	from := t.TempDir()
	Plant(t, from, map[string]string{"f": "x"}, 0o755)
	if err := errors.Join(os.Chown(from+"/f", 4242, 4343), os.Chmod(from+"/f", 0o755|fs.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	for _, owners := range []bool{false, true} {
		to := t.TempDir()
		if _, err := transfer([]string{from + "/f"}, tree.Target{Path: to, Owners: owners}); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(to + "/f")
		if err != nil {
			t.Fatal(err)
		}
		st, _ := fi.Sys().(*syscall.Stat_t)
		if kept := st.Uid == 4242 && st.Gid == 4343 && fi.Mode() == 0o755|fs.ModeSetuid; kept != owners || !owners && (st.Uid != 0 || fi.Mode() != 0o755) {
			t.Errorf("owners %v: uid %d, gid %d, mode %v", owners, st.Uid, st.Gid, fi.Mode())
		}
	}
}
