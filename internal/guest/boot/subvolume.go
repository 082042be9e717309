package boot

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
)

// usualSubvolumes are what distributions call the one that has the root: Fedora,
// Ubuntu and Arch, Debian.
var usualSubvolumes = []string{"root", "@", "@rootfs"}

// openRoot mounts the root. Where a btrfs has none in what is mounted without naming a
// subvolume, and the host could not tell which has, those with usual names are tried.
func openRoot(cfg guest.RootConfig, container bool) (*Rootfs, error) {
	fsType, err := mountRoot(cfg)
	if err != nil {
		return nil, err
	}
	r, err := OpenRootfs(newRoot)
	if err != nil || container || fsType != "btrfs" || strings.Contains(cfg.Flags, "subvol=") || hasInit(r, cfg.Init) {
		return r, err
	}
	_ = r.Close()
	for _, name := range usualSubvolumes {
		if err := unix.Unmount(newRoot, 0); err != nil {
			return nil, err
		}
		with := cfg
		with.FSType, with.Flags = fsType, strings.TrimPrefix(cfg.Flags+",subvol="+name, ",")
		if _, err := mountRoot(with); err != nil {
			if _, err = mountRoot(cfg); err != nil {
				return nil, err
			}
			continue
		}
		r, err := OpenRootfs(newRoot)
		if err != nil || hasInit(r, cfg.Init) {
			return r, err
		}
		_ = r.Close()
	}
	return OpenRootfs(newRoot)
}
