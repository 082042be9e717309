package boot

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/guest"
)

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
	for _, name := range disk.RootSubvolumes {
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

// homes are where accounts keep their keys, and distributions have subvolumes.
var homes = []string{"/home", "/root"}

// mountHomes mounts the subvolumes of the root's btrfs that fstab(5) has for the homes of
// users: what is written there before would be hidden by the mount.
func mountHomes(r *Rootfs, device string) error {
	text, err := r.ReadFile(fstabPath)
	if err != nil {
		return nil //nolint:nilerr // then nobody mounts any
	}
	info, err := disk.Probe(device)
	if err != nil || info.FS != "btrfs" {
		return err
	}
	here := disks{nodes: []string{device}, uuids: []string{info.UUID}, labels: []string{info.Label}}
	var errs []error
	for _, m := range homesIn(string(text), here) {
		d, err := r.OpenDir(m.dir)
		if err == nil {
			flags, data := mountFlags(m.options)
			err = unix.Mount(device, procFD(d), "btrfs", flags, data)
			_ = d.Close()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.dir, err))
		}
	}
	return errors.Join(errs...)
}

// home is a line of an fstab.
type home struct{ dir, options string }

// homesIn are the lines of homes in subvolumes of the disk that is here.
func homesIn(text string, here disks) []home {
	var out []home
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "btrfs" || !slices.Contains(homes, f[1]) || !strings.Contains(","+f[3], ",subvol=") || !here.has(f[0]) {
			continue
		}
		options := slices.DeleteFunc(strings.Split(f[3], ","), func(o string) bool {
			return o == "auto" || o == "nofail" || o == "noauto" || o == "_netdev" || strings.HasPrefix(o, "x-")
		})
		out = append(out, home{f[1], strings.Join(options, ",")})
	}
	return out
}
