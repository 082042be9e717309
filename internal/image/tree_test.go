package image

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

// hostile is a tree whose links lead out of it, beside a victim.
func hostile(t *testing.T, links map[string]string) (tr *tree, outside string) {
	t.Helper()
	outside = t.TempDir()
	dir := filepath.Join(outside, "tree")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(outside, "passwd"), []byte("precious"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for name, target := range links {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(strings.ReplaceAll(target, "OUT", outside), path)); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := openTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr, outside
}

// untouched checks that nothing outside the tree came, went or changed.
func untouched(t *testing.T, outside string) {
	t.Helper()
	entries, err := os.ReadDir(outside)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if d := cmp.Diff([]string{"passwd", "tree"}, names); err != nil || d != "" {
		t.Error(err, d)
	}
	b, err := os.ReadFile(filepath.Join(outside, "passwd"))
	st, statErr := os.Stat(filepath.Join(outside, "passwd"))
	if errors.Join(err, statErr) != nil || string(b) != "precious" || st.Mode() != 0o644 {
		t.Errorf("the file outside: %q %v %v", b, st.Mode(), err)
	}
}

func TestTreeStaysInside(t *testing.T) {
	write := func(tr *tree) error { return tr.write("etc/hostname", "x", 0o600) }
	for name, c := range map[string]struct {
		links   map[string]string
		do      func(*tree) error
		refused bool
	}{
		"last part absolute":  {map[string]string{"etc/hostname": "OUT/passwd"}, write, false},
		"last part with dots": {map[string]string{"etc/hostname": "../../passwd"}, write, false},
		"directory absolute":  {map[string]string{"etc": "OUT"}, write, true},
		"directory with dots": {map[string]string{"etc": ".."}, write, true},
		"two links":           {map[string]string{"a": "b", "b": "..", "etc": "a"}, write, true},
		"a loop":              {map[string]string{"etc": "b", "b": "etc"}, write, true},
		"mkdir absolute":      {map[string]string{"var": "OUT"}, func(tr *tree) error { return tr.mkdir("var/log", 0o700) }, true},
		"mkdir over a file":   {map[string]string{"var": "../passwd"}, func(tr *tree) error { return tr.mkdir("var", 0o777) }, true},
		"symlink through one": {map[string]string{"bin": "OUT"}, func(tr *tree) error { return tr.symlink("busybox", "bin/sh") }, true},
		"symlink over one":    {map[string]string{"bin/sh": "OUT/passwd"}, func(tr *tree) error { return tr.symlink("busybox", "bin/sh") }, false},
		"name with dots":      {nil, func(tr *tree) error { return tr.write("../evil", "x", 0o600) }, true},
		"the whole layout":    {map[string]string{"etc": "OUT", "usr": ".."}, tinyLayout, true},
		"the files":           {map[string]string{"etc/passwd": "OUT/passwd", "usr/bin/busybox": "OUT/passwd"}, tinyFiles, true},
	} {
		t.Run(name, func(t *testing.T) {
			tr, outside := hostile(t, c.links)
			err := c.do(tr)
			if (err != nil) != c.refused {
				t.Errorf("refused is %v, want %v: %v", err != nil, c.refused, err)
			}
			untouched(t, outside)
		})
	}
}

func TestTreeFollowsLinksWithin(t *testing.T) {
	tr, outside := hostile(t, map[string]string{"bin": "usr/bin"})
	if err := errors.Join(tr.mkdir("usr/bin", 0o755), tr.write("bin/x", "content", 0o755), tr.write("usr/bin/x", "newer", 0o640)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(outside, "tree/usr/bin/x"))
	st, statErr := os.Stat(filepath.Join(outside, "tree/usr/bin/x"))
	if errors.Join(err, statErr) != nil || string(b) != "newer" || st.Mode() != 0o640 {
		t.Errorf("%q %v %v", b, st.Mode(), err)
	}
	untouched(t, outside)
}

func TestCollect(t *testing.T) {
	for name, c := range map[string]struct {
		make func(path, victim string) error
		ok   bool
	}{
		"a file":         {func(p, _ string) error { return os.WriteFile(p, []byte("fs"), 0o666) }, true},
		"a link":         {func(p, v string) error { return os.Symlink(v, p) }, false},
		"a second name":  {func(p, v string) error { return os.Link(v, p) }, false},
		"a directory":    {func(p, _ string) error { return os.Mkdir(p, 0o777) }, false},
		"nothing at all": {func(_, _ string) error { return nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			from, to, victim := filepath.Join(dir, "from"), filepath.Join(dir, "to"), filepath.Join(dir, "victim")
			if err := errors.Join(os.WriteFile(victim, []byte("v"), 0o644), c.make(from, victim)); err != nil {
				t.Fatal(err)
			}
			err := collect(from, to)
			if (err == nil) != c.ok {
				t.Fatal(err)
			}
			if st, err := os.Stat(victim); err != nil || st.Mode() != 0o644 {
				t.Errorf("the victim: %v %v", st.Mode(), err)
			}
			st, err := os.Stat(to)
			if c.ok && (err != nil || st.Mode() != 0o600) || !c.ok && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the result: %v", err)
			}
		})
	}
}

func TestApplets(t *testing.T) {
	got, err := applets(strings.NewReader("ELF\x00[\x00[[\x00ash\x00cat\x00run-init\x00\x00rest"))
	if d := cmp.Diff([]string{"[", "[[", "ash", "cat", "run-init"}, got); err != nil || d != "" {
		t.Error(err, d)
	}
	for _, bad := range []string{"", "\x00[\x00[[\x00ash", "\x00[\x00[[\x00../../etc/passwd\x00\x00", "\x00[\x00[[\x00a/b\x00\x00", "\x00[\x00[[\x00..\x00\x00"} {
		if got, err := applets(strings.NewReader(bad)); !errors.Is(err, mvm.ErrUnsupported) {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
}

func FuzzApplets(f *testing.F) {
	f.Add([]byte("\x00[\x00[[\x00ash\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		names, err := applets(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, n := range names {
			if n == "" || strings.ContainsAny(n, "/\x00") || n == "." || n == ".." {
				t.Errorf("applet %q", n)
			}
		}
	})
}
