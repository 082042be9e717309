package boot

import (
	"path"
	"strings"
)

// What package managers have downloaded and installed, and make again when they
// need it. Lists of packages stay: without them nothing can be installed.
var (
	packageCaches  = []string{"/var/cache/apt", "/var/cache/dnf", "/var/cache/libdnf5", "/var/cache/yum", "/var/cache/zypp", "/var/cache/apk", "/var/cache/pacman"}
	packageEndings = []string{".deb", ".rpm", ".apk", ".pkg.tar.zst", ".pkg.tar.xz", ".pkg.tar.gz", "/pkgcache.bin", "/srcpkgcache.bin"}
)

// maxCacheDepth is deeper than any package manager keeps files.
const maxCacheDepth = 6

// Deblob frees what the image's package managers have cached. What cannot be
// removed stays: nobody waits for it.
func Deblob(r *Rootfs) {
	for _, dir := range packageCaches {
		deblob(r, dir, maxCacheDepth)
	}
}

func deblob(r *Rootfs, dir string, depth int) {
	if _, err := r.Readlink(dir); err == nil {
		return // leads elsewhere
	}
	names, err := r.ReadDir(dir)
	if err != nil {
		return
	}
	for _, name := range names {
		p := path.Join(dir, name)
		switch {
		case isPackage(p):
			_ = r.Remove(p)
		case depth > 0:
			deblob(r, p, depth-1)
		}
	}
}

func isPackage(p string) bool {
	for _, ending := range packageEndings {
		if strings.HasSuffix(p, ending) {
			return true
		}
	}
	return false
}
