package boot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// isolated runs fn on a thread in namespaces of its own, which end with it.
func isolated(t *testing.T, flags int, fn func() error) {
	t.Helper()
	testenv.Require(t, "netns")
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if err := unix.Unshare(flags | unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		done <- fn()
	}()
	switch err := <-done; {
	case errors.Is(err, errNoResource):
		t.Skip(err)
	case err != nil:
		t.Error(err)
	}
}

func TestSetupNetwork(t *testing.T) {
	isolated(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS, func() error {
		// A sysfs of the new network namespace, in a mount namespace of our own.
		if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("sysfs", "/sys", "sysfs", 0, "")); err != nil {
			return err
		}
		if err := SetupLoopback(); err != nil {
			return err
		}
		if err := addBridge("02:00:00:00:00:01"); err != nil {
			return err
		}
		for _, gw := range []string{"172.27.0.1", "172.27.0.1", "192.168.9.1"} { // twice, then off the subnet
			cfg := &guest.NetConfig{MAC: "02:00:00:00:00:01", Address: "172.27.0.2/24", Gateway: gw, MTU: 1400}
			if err := SetupNetwork(cfg, time.Second); err != nil {
				return fmt.Errorf("gateway %s: %w", gw, err)
			}
			if err := expectNetwork(gw); err != nil {
				return fmt.Errorf("gateway %s: %w", gw, err)
			}
		}
		if err := SetupNetwork(&guest.NetConfig{MAC: "02:00:00:00:00:99", Address: "172.27.0.2/24"}, 0); err == nil {
			return errors.New("an interface that is not there was set up")
		}
		return nil
	})
}

func addBridge(mac string) error {
	n, err := openRtnl()
	if err != nil {
		return err
	}
	defer n.close()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	b := attr(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_IFNAME, []byte("br9\x00"))
	b = attr(b, unix.IFLA_ADDRESS, hw)
	b = attr(b, unix.IFLA_LINKINFO, attr(nil, unix.IFLA_INFO_KIND, []byte("bridge")))
	return n.do(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, b)
}

func expectNetwork(gw string) error {
	i, err := net.InterfaceByName("br9")
	if err != nil {
		return err
	}
	addrs, err := i.Addrs()
	if err != nil {
		return err
	}
	if len(addrs) == 0 || addrs[0].String() != "172.27.0.2/24" || i.MTU != 1400 || i.Flags&net.FlagUp == 0 {
		return fmt.Errorf("interface %+v with %v", i, addrs)
	}
	data, err := os.ReadFile("/proc/thread-self/net/route")
	if err != nil {
		return err
	}
	a := netip.MustParseAddr(gw).As4()
	hex := fmt.Sprintf("%02X%02X%02X%02X", a[3], a[2], a[1], a[0])
	for _, l := range strings.Split(string(data), "\n") {
		if f := strings.Fields(l); len(f) > 2 && f[0] == "br9" && f[1] == "00000000" && f[2] == hex {
			return nil
		}
	}
	return fmt.Errorf("no default route by %s in %s", gw, data)
}

func TestGrow(t *testing.T) {
	ctx, host := context.Background(), &run.Host{}
	for _, tc := range []struct {
		fs   string
		mkfs string
		args []string
	}{
		{"ext4", "mke2fs", []string{"-q", "-F", "-t", "ext4"}},
		{"xfs", "mkfs.xfs", []string{"-q"}},
		{"btrfs", "mkfs.btrfs", []string{"-q"}},
	} {
		t.Run(tc.fs, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "img")
			must(t, os.WriteFile(img, nil, 0o600))
			must(t, os.Truncate(img, 320<<20))
			_, err := host.Run(ctx, run.Cmd{Name: tc.mkfs, Args: append(tc.args, img)})
			if errors.Is(err, mvm.ErrUnavailable) {
				t.Skip(err)
			}
			must(t, err)
			must(t, os.Truncate(img, 640<<20))
			dir := t.TempDir()
			isolated(t, unix.CLONE_NEWNS, func() error { return growLoop(tc.fs, img, dir) })
		})
	}
}

// growLoop mounts the image in this thread's mount namespace and grows it. The
// loop device clears itself with the last user.
func growLoop(fs, img, dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	dev, closeDev, err := attach(img)
	if err != nil {
		return err
	}
	defer closeDev()
	if err := unix.Mount(dev, dir, fs, 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", fs, err)
	}
	defer func() { _ = unix.Unmount(dir, 0) }()
	size := func() uint64 {
		var st unix.Statfs_t
		_ = unix.Statfs(dir, &st)
		return st.Blocks * uint64(st.Bsize)
	}
	before := size()
	for range 2 { // the second time there is nothing to do
		err := Grow(dir, dev)
		if errors.Is(err, unix.EPERM) && !capable(unix.CAP_SYS_RESOURCE) {
			return errNoResource
		}
		if err != nil {
			return err
		}
	}
	if after := size(); after < before+before/2 {
		return fmt.Errorf("%d bytes before, %d after", before, after)
	}
	return nil
}

var errNoResource = errors.New("growing ext4 needs CAP_SYS_RESOURCE, which this container has not")

// capable says whether the process may have a capability at all.
func capable(c uint) bool {
	ok, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
	return err == nil && ok == 1
}

func attach(img string) (string, func(), error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = ctl.Close() }()
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = f.Close() }()
	for range 20 { // somebody else may take the free one first
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", nil, err
		}
		dev := fmt.Sprintf("/dev/loop%d", n)
		l, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			return "", nil, err
		}
		cfg := &unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		if err = unix.IoctlLoopConfigure(int(l.Fd()), cfg); err == nil {
			return dev, func() { _ = l.Close() }, nil
		}
		_ = l.Close()
		if !errors.Is(err, unix.EBUSY) {
			return "", nil, err
		}
	}
	return "", nil, errors.New("no free loop device")
}

func TestMountFlags(t *testing.T) {
	flags, data := mountFlags("ro,noatime, commit=5,defaults,subvol=@")
	if flags != unix.MS_RDONLY|unix.MS_NOATIME || data != "commit=5,subvol=@" {
		t.Errorf("got %#x %q", flags, data)
	}
}

func TestMissingDeviceNamesWhatIsThere(t *testing.T) {
	err := waitDevice("/dev/no-such-device", 0)
	if err == nil || !strings.Contains(err.Error(), "block devices here: ") {
		t.Errorf("got %v", err)
	}
	dir := t.TempDir()
	must(t, errors.Join(os.Mkdir(dir+"/vdb", 0o755), os.Mkdir(dir+"/vda", 0o755)))
	if got := blockDevices(dir); got != "/dev/vda /dev/vdb" {
		t.Errorf("got %q", got)
	}
	if got := blockDevices(t.TempDir()); !strings.Contains(got, "none") {
		t.Errorf("got %q", got)
	}
}
