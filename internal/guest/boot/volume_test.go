package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/run"
)

func TestFindDisk(t *testing.T) {
	dir := t.TempDir()
	for name, serial := range map[string]string{"vda": "rootfs", "vdb": "vol-0123456789abcdef", "vdc": "6502412345678\n", "vdd": ""} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name, "serial"), []byte(serial), 0o644))
	}
	must(t, os.Mkdir(filepath.Join(dir, "loop0"), 0o755))
	for want, serials := range map[string][]string{
		"vdb": {"vol-0123456789abcdef", "1"}, "vdc": {"none", "6502412345678"}, "vda": {"rootfs"}, "": {"", "vol-"},
	} {
		if got := findDisk(dir, serials, 0); got != want {
			t.Errorf("%q is %q, want %q", serials, got, want)
		}
		if got := findDisk(dir, serials, 1); got != "" {
			t.Errorf("the second %q is %q", serials, got)
		}
	}
	for _, name := range []string{"vde", "vdaa", "vdz"} { // as many disks of one server's kind
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name, "serial"), []byte("vhost_user_blk"), 0o644))
	}
	for nth, want := range map[int]string{-1: "", 0: "vde", 1: "vdz", 2: "vdaa", 3: ""} {
		if got := findDisk(dir, []string{"vhost_user_blk"}, nth); got != want {
			t.Errorf("disk %d of a server is %q, want %q", nth, got, want)
		}
	}
	if _, err := FindDisk([]string{"no-such-serial"}, 0, 0); !errors.Is(err, errNoDisk) || !strings.Contains(err.Error(), "no-such-serial") {
		t.Error(err)
	}
}

func TestMountsOf(t *testing.T) {
	const info = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 254:16 / /srv/a\040b rw - ext4 /dev/vdb rw
31 22 0:40 / /srv/pool rw - btrfs /dev/vdc rw
32 22 254:16 /sub /mnt rw master:1 shared:2 - ext4 /dev/disk/by-label/x rw
33 22 0:41 / /proc rw - proc proc rw
bad line
`
	for _, c := range []struct {
		device, number string
		want           []string
	}{
		{"/dev/vdb", "254:16", []string{"/srv/a b", "/mnt"}},
		{"/dev/vdc", "254:32", []string{"/srv/pool"}},
		{"/dev/vdd", "254:48", nil},
	} {
		if d := cmp.Diff(c.want, mountsOf(info, c.device, c.number)); d != "" {
			t.Errorf("%s: %s", c.device, d)
		}
	}
}

// A volume is mounted where it is to be, with a directory made for it, found mounted
// the second time, grown with its disk, and given back unless something uses it.
func TestMountVolume(t *testing.T) {
	ctx, host := context.Background(), &run.Host{}
	for fs, mkfs := range map[string][]string{
		"ext4": {"mke2fs", "-q", "-F", "-t", "ext4"}, "xfs": {"mkfs.xfs", "-q"}, "btrfs": {"mkfs.btrfs", "-q"},
	} {
		t.Run(fs, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "img")
			must(t, os.WriteFile(img, nil, 0o600))
			must(t, os.Truncate(img, 320<<20))
			_, err := host.Run(ctx, run.Cmd{Name: mkfs[0], Args: append(mkfs[1:], img)})
			if errors.Is(err, mvm.ErrUnavailable) {
				t.Skip(err)
			}
			must(t, err)
			must(t, os.Truncate(img, 640<<20))
			root := t.TempDir()
			isolated(t, unix.CLONE_NEWNS, func() error { return volumeLoop(fs, img, root) })
		})
	}
}

func volumeLoop(fs, img, dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	dev, closeDev, err := attach(img)
	if err != nil {
		return err
	}
	defer closeDev()
	root, err := OpenRootfs("/")
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	at := filepath.Join(dir, "deep", "er")
	for _, v := range []wire.Volume{{Mount: at, FSType: fs, ReadOnly: true}, {Mount: at}, {Mount: at, FSType: fs}} {
		err := MountVolume(root, v, dev)
		if errors.Is(err, unix.EPERM) && !capable(unix.CAP_SYS_RESOURCE) {
			return errNoResource
		}
		if err != nil {
			return fmt.Errorf("mount %+v: %w", v, err)
		}
		if again := MountVolume(root, v, dev); again != nil {
			return fmt.Errorf("mount again %+v: %w", v, again)
		}
		if where, err := mounts(dev); err != nil || len(where) != 1 || where[0] != at {
			return fmt.Errorf("it is mounted at %q, %w", where, err)
		}
		f, err := os.Create(filepath.Join(at, "x"))
		if v.ReadOnly != errors.Is(err, unix.EROFS) {
			return fmt.Errorf("writing to %+v: %w", v, err)
		}
		if v.ReadOnly {
			if err := releaseDevice(dev); err != nil {
				return err
			}
			continue
		}
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil || st.Blocks*uint64(st.Bsize) < 480<<20 {
			return fmt.Errorf("it has %d bytes, %w", st.Blocks*uint64(st.Bsize), err)
		}
		if err := releaseDevice(dev); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "something in the guest uses it") {
			return fmt.Errorf("released while a file is open: %w", err)
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := releaseDevice(dev); err != nil {
			return err
		}
		if where, err := mounts(dev); err != nil || len(where) > 0 {
			return fmt.Errorf("it is still mounted at %q, %w", where, err)
		}
	}
	return nil
}

func TestMountVolumeWithoutFileSystem(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	must(t, os.WriteFile(img, nil, 0o600))
	must(t, os.Truncate(img, 8<<20))
	dir := t.TempDir()
	isolated(t, unix.CLONE_NEWNS, func() error {
		dev, closeDev, err := attach(img)
		if err != nil {
			return err
		}
		defer closeDev()
		root, err := OpenRootfs("/")
		if err != nil {
			return err
		}
		defer func() { _ = root.Close() }()
		if err := MountVolume(root, wire.Volume{Mount: filepath.Join(dir, "x")}, dev); err == nil || !strings.Contains(err.Error(), "mount "+dev+": ext4: ") {
			return fmt.Errorf("an empty disk: %w", err)
		}
		return nil
	})
}

func TestReleaseDiskThatIsGone(t *testing.T) {
	if err := ReleaseDisk([]string{"no-such-serial"}, true); err != nil {
		t.Error(err)
	}
}
