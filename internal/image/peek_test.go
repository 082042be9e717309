package image

import (
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/image/imagetest"
)

func TestPeek(t *testing.T) {
	link := func(to string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
	}
	text := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s), Mode: 0o644} }
	for name, c := range map[string]struct {
		tree fstest.MapFS
		want contents
	}{
		"plain":            {fstest.MapFS{"usr/lib/os-release": text("ID=debian\nVERSION_ID=\"12\"\n"), "usr/bin/dash": {Data: imagetest.ELF(62)}}, contents{"debian 12", "12", "x86_64", ""}},
		"links":            {fstest.MapFS{"etc/os-release": link("../usr/lib/release"), "usr/lib/release": text("ID=alpine\nVERSION_ID=3.20\n"), "bin": link("usr/bin"), "usr/bin/sh": link("/bin/ash"), "usr/bin/ash": {Data: imagetest.ELF(183)}}, contents{"alpine 3.20", "3.20", "aarch64", ""}},
		"rolling":          {fstest.MapFS{"etc/os-release": text("ID=arch\n")}, contents{"arch", "", "", ""}},
		"a loop":           {fstest.MapFS{"etc/os-release": link("os-release"), "bin/sh": link("sh")}, contents{}},
		"up and away":      {fstest.MapFS{"etc/os-release": link("../../../../../../etc/passwd"), "etc/passwd": text("ID=inside\n")}, contents{"inside", "", "", ""}},
		"a directory":      {fstest.MapFS{"usr/lib/os-release/x": text("ID=no")}, contents{}},
		"control letters":  {fstest.MapFS{"etc/os-release": text("ID=\"a\x1b[31mb\"\n")}, contents{"a[31mb", "", "", ""}},
		"no program":       {fstest.MapFS{"bin/sh": text("#!/bin/true")}, contents{}},
		"nothing":          {fstest.MapFS{}, contents{}},
		"an odd processor": {fstest.MapFS{"bin/sh": {Data: imagetest.ELF(8)}}, contents{"", "", "machine 8", ""}},
	} {
		if got := peek(func() (fs.FS, error) { return c.tree, nil }); got != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := peek(func() (fs.FS, error) { panic("a library's own") }); got != (contents{}) {
		t.Error(got)
	}
}

func TestCheckArch(t *testing.T) {
	if err := errors.Join(checkArch("", "x86_64"), checkArch("x86_64", "x86_64")); err != nil {
		t.Error(err)
	}
	if err := checkArch("aarch64", "x86_64"); !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" {
		t.Error(err)
	}
}

func FuzzRelease(f *testing.F) {
	f.Add("ID=debian\nVERSION_ID=\"12\"\n")
	f.Add("ID='x'\n=\nVERSION_ID")
	f.Fuzz(func(t *testing.T, text string) {
		c := peek(func() (fs.FS, error) {
			return fstest.MapFS{"etc/os-release": {Data: []byte(text), Mode: 0o644}}, nil
		})
		for _, r := range c.distro {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				t.Errorf("%q has control characters", c.distro)
			}
		}
	})
}
