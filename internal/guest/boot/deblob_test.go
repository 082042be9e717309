package boot

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDeblob(t *testing.T) {
	r, root := tree(t, func(root string) {
		for _, name := range []string{
			"var/cache/apt/archives/a_1_amd64.deb", "var/cache/apt/archives/partial/b.deb", "var/cache/apt/archives/lock", "var/cache/apt/pkgcache.bin",
			"var/cache/dnf/fedora-1a/packages/c.rpm", "var/cache/dnf/fedora-1a/repodata/primary.xml.gz", "var/cache/apk/APKINDEX.tar.gz", "var/cache/pacman/pkg/d.pkg.tar.zst",
			"var/lib/apt/lists/deb.list", "home/u/mine.deb",
		} {
			write(t, root, name, "x")
		}
		must(t, os.MkdirAll(root+"/var/cache/apt/odd.deb", 0o755)) // a directory
		must(t, os.Symlink("../../../home/u", root+"/var/cache/apt/away"))
		must(t, os.Symlink("../../home/u", root+"/var/cache/yum"))
	})
	Deblob(r)
	Deblob(r) // finds nothing
	var left []string
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.Contains(p, "/etc/") {
			left = append(left, strings.TrimPrefix(p, root+"/"))
		}
		return err
	}))
	want := []string{"home/u/mine.deb", "var/cache/apk/APKINDEX.tar.gz", "var/cache/apt/archives/lock", "var/cache/dnf/fedora-1a/repodata/primary.xml.gz", "var/lib/apt/lists/deb.list"}
	if d := cmp.Diff(want, left); d != "" {
		t.Error(d)
	}
}
