package boot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest/wire"
)

// blockDir is where the kernel lists disks.
const blockDir = "/sys/block"

// poll is the pause between two looks for a disk.
const poll = 10 * time.Millisecond

// FindDisk returns the device of the nth disk that has one of the serials, waiting for
// it if it is not there yet.
func FindDisk(serials []string, nth int, limit time.Duration) (string, error) {
	for end := time.Now().Add(limit); ; time.Sleep(poll) {
		if name := findDisk(blockDir, serials, nth); name != "" {
			return "/dev/" + name, nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("%w with the serial %s within %s", errNoDisk, strings.Join(serials, " or "), limit)
		}
	}
}

var errNoDisk = errors.New("no disk appeared")

// findDisk returns the nth disk with one of the serials; "" when there are not as many.
// The kernel names disks in the order in which it finds them: vdz is followed by vdaa.
func findDisk(dir string, serials []string, nth int) string {
	files, _ := filepath.Glob(filepath.Join(dir, "*", "serial"))
	var found []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		// An empty serial is that of a disk that was given none.
		if s := strings.TrimSpace(string(data)); err == nil && s != "" && slices.Contains(serials, s) {
			found = append(found, filepath.Base(filepath.Dir(file)))
		}
	}
	if nth < 0 || nth >= len(found) {
		return ""
	}
	slices.SortFunc(found, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) })
	return found[nth]
}

// RescanPCI has the kernel look for devices that were plugged in without its being told.
func RescanPCI() error {
	err := os.WriteFile("/sys/bus/pci/rescan", []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// MountVolume mounts a volume's device below root, and grows its file system where
// the disk has become larger. One that is mounted there already is left alone.
func MountVolume(root *Rootfs, v wire.Volume, device string) error {
	where, err := mounts(device)
	if err != nil {
		return err
	}
	if slices.Contains(where, v.Mount) {
		return nil
	}
	d, err := root.OpenDir(v.Mount)
	if err != nil {
		return err
	}
	err = mountDevice(device, procFD(d), v)
	_ = d.Close()
	if err != nil || v.ReadOnly {
		return err
	}
	if d, err = root.OpenDir(v.Mount); err != nil { // again: the new mount is on top now
		return err
	}
	defer func() { _ = d.Close() }()
	if err := Grow(procFD(d), device); err != nil {
		return fmt.Errorf("it is mounted, but could not be grown to its disk: %w", err)
	}
	return nil
}

// bootDiskWait is how long a volume may keep the boot waiting: the disks were there
// before the kernel started.
const bootDiskWait = 5 * time.Second

// mountAtBoot mounts a volume below the root that is not yet "/".
func mountAtBoot(root *Rootfs, v wire.Volume) error {
	device, err := FindDisk(v.Serials, v.Nth, bootDiskWait)
	if err != nil {
		return err
	}
	return MountVolume(root, v, device)
}

// unclean are the options to mount file systems that were not unmounted and that
// must not be written to: their journal stays as it is.
var unclean = map[string]string{"ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}

func mountDevice(device, target string, v wire.Volume) error {
	var flags uintptr
	if v.ReadOnly {
		flags = unix.MS_RDONLY
	}
	var tried []string
	for _, fsType := range fsTypes(v.FSType) {
		err := unix.Mount(device, target, fsType, flags, "")
		if v.ReadOnly && (err == unix.EROFS || err == unix.EACCES) {
			err = unix.Mount(device, target, fsType, flags, unclean[fsType])
		}
		if err == nil {
			return nil
		}
		tried = append(tried, fmt.Sprintf("%s: %v", fsType, err))
	}
	return fmt.Errorf("mount %s: %s", device, strings.Join(tried, ", "))
}

// mounts returns where a device is mounted, in the order of mounting.
func mounts(device string) ([]string, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: device, Err: err}
	}
	return mountsOf(string(data), device, fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))), nil
}

// mountsOf reads mountinfo, proc(5). A btrfs has a device number of its own there,
// and is known by what it was mounted from.
func mountsOf(mountinfo, device, number string) []string {
	var where []string
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if dash < 6 || len(f) < dash+3 {
			continue
		}
		source := unescape(f[dash+2])
		if target, err := filepath.EvalSymlinks(source); err == nil {
			source = target
		}
		if f[2] == number || source == device {
			where = append(where, unescape(f[4]))
		}
	}
	return where
}

var escapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescape(s string) string { return escapes.Replace(s) }

// ReleaseDisk unmounts a disk wherever it is mounted, and says what else is in the
// way. With eject its device is taken out as well.
func ReleaseDisk(serials []string, eject bool) error {
	name := findDisk(blockDir, serials, 0)
	if name == "" {
		return nil
	}
	if err := releaseDevice("/dev/" + name); err != nil || !eject {
		return err
	}
	// block/vdb/device is the virtio device, which sits on the PCI device.
	virtio, err := filepath.EvalSymlinks(path.Join(blockDir, name, "device"))
	if err != nil {
		return err
	}
	err = os.WriteFile(path.Join(path.Dir(virtio), "remove"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("/dev/%s is no PCI device and cannot be taken out", name)
	}
	return err
}

// releaseDevice unmounts a device, and writes out what the kernel holds of it.
func releaseDevice(device string) error {
	where, err := mounts(device)
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(where) {
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w; something in the guest uses it", dir, err)
		}
	}
	// Swap, LVM, RAID and mounts of its partitions hold it exclusively, open(2).
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("something in the guest uses %s: %w", device, err)
	}
	return errors.Join(f.Sync(), f.Close())
}
