package boot

import (
	"fmt"
	"os"
	"path"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
)

// newRoot is where the VM's disk is mounted before it becomes "/".
const newRoot = "/newroot"

// mountAPI mounts what the kernel offers: /proc, /sys, /dev.
func mountAPI() error {
	for _, m := range []struct {
		fs, dir string
		flags   uintptr
		data    string
	}{
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// waitDevice waits until the kernel has made the device node.
func waitDevice(device string, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		var st unix.Stat_t
		if unix.Stat(device, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the root device %s did not appear within %s; block devices here: %s",
				device, limit, blockDevices("/sys/class/block"))
		}
	}
}

// blockDevices names what there is instead.
func blockDevices(dir string) string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, "/dev/"+e.Name())
	}
	if len(names) == 0 {
		return "none (is the disk's driver among the modules?)"
	}
	sort.Strings(names)
	return strings.Join(names, " ")
}

// mountRoot mounts the device, with the file system that the image is said to
// have first, and returns which it has.
func mountRoot(cfg guest.RootConfig) (fsType string, err error) {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return "", err
	}
	flags, data := mountFlags(cfg.Flags)
	var tried []string
	for _, fs := range fsTypes(cfg.FSType) {
		err := unix.Mount(cfg.Device, newRoot, fs, flags, data)
		if err == unix.EROFS || err == unix.EACCES { // the disk itself is read-only
			err = unix.Mount(cfg.Device, newRoot, fs, flags|unix.MS_RDONLY, data)
		}
		if err == nil {
			return fs, nil
		}
		tried = append(tried, fmt.Sprintf("%s: %v", fs, err))
	}
	return "", fmt.Errorf("mount %s: %s", cfg.Device, strings.Join(tried, ", "))
}

func fsTypes(first string) []string {
	var out []string
	if first != "" && first != "auto" {
		out = append(out, first)
	}
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		if fs != first {
			out = append(out, fs)
		}
	}
	return out
}

// mountFlags splits options as in fstab(5) into the kernel's flags and the file
// system's own data.
func mountFlags(options string) (uintptr, string) {
	known := map[string]uintptr{
		"ro": unix.MS_RDONLY, "rw": 0, "defaults": 0,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
		"strictatime": unix.MS_STRICTATIME, "lazytime": unix.MS_LAZYTIME, "sync": unix.MS_SYNCHRONOUS,
		"dirsync": unix.MS_DIRSYNC, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	}
	var flags uintptr
	var data []string
	for _, o := range strings.Split(options, ",") {
		o = strings.TrimSpace(o)
		if f, ok := known[o]; ok {
			flags |= f
		} else if o != "" {
			data = append(data, o)
		}
	}
	return flags, strings.Join(data, ",")
}

// moveMounts takes /dev, /sys and /proc along. /proc goes last: it is what the
// other targets are named by.
func moveMounts(r *Rootfs) error {
	for _, dir := range []string{"/dev", "/sys", "/proc"} {
		d, err := r.OpenDir(dir)
		if err != nil {
			return err
		}
		err = unix.Mount(dir, procFD(d), "", unix.MS_MOVE, "")
		_ = d.Close()
		if err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	return nil
}

// switchRoot frees the initramfs and makes newRoot "/", as switch_root(8) does.
func switchRoot() error {
	emptyInitramfs()
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// emptyInitramfs removes our files from rootfs so that their memory is free. It
// goes by name, and never below the new root.
func emptyInitramfs() {
	for _, f := range []string{path.Dir(guest.ConfigPath), guest.InitPath} {
		_ = os.RemoveAll(f)
	}
}
