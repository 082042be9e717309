package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// guestMain is the guest of the tests with the real Firecracker: this very test
// binary, as /init of an initramfs. It behaves as fakevmm's guest does: it says
// on the console that it is up, repeats there what it reads, ends on the line
// "poweroff" or on Ctrl-Alt-Del, answers the lines that vmmtest.Fixture has, and
// echoes what comes on vsock port 1024.
// Everything that it needs of its kernel is below /modules.
func guestMain() {
	_ = unix.Mount("proc", "/proc", "proc", 0, "")
	_ = unix.Mount("sys", "/sys", "sysfs", 0, "")
	_ = unix.Mount("dev", "/dev", "devtmpfs", 0, "")
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		console = os.Stdout
	}
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(console, format+"\n", args...) }
	list, _ := os.ReadFile("/modules/list")
	for _, name := range strings.Fields(string(list)) {
		if err := loadModule(filepath.Join("/modules", name)); err != nil {
			say("labguest: module %s: %v", name, err)
		}
	}
	disks, _ := filepath.Glob("/sys/block/vd*")
	nics, _ := filepath.Glob("/sys/class/net/eth*")
	say("labguest: %d disks, %d interfaces", len(disks), len(nics))
	for _, disk := range disks {
		size, err1 := os.ReadFile(disk + "/size")
		readOnly, err2 := os.ReadFile(disk + "/ro")
		say("labguest: %s has %s sectors, read-only %s", filepath.Base(disk), strings.TrimSpace(string(size)), strings.TrimSpace(string(readOnly)))
		if err := errors.Join(err1, err2); err != nil {
			say("labguest: %v", err)
		}
	}
	go echoVsock(say)
	say("labguest: ready")
	if args, err := os.ReadFile("/proc/cmdline"); err == nil && strings.Contains(string(args), fakevmm.PowerOffArg) {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	lines := bufio.NewScanner(console)
	for count := 0; lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		say("%s", line)
		switch line {
		case "poweroff":
			_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		case "count":
			count++
			say("count %d", count)
		case "disks":
			err := writeTo("/sys/bus/pci/rescan")
			disks, _ := filepath.Glob("/sys/block/vd*")
			say("disks %d, %v", len(disks), err)
		case "drop":
			say("dropped: %v", dropDisk())
		case "metadata":
			data, err := askMetadata()
			say("metadata %s, %v", data, err)
		}
	}
	say("labguest: the console ended: %v", lines.Err())
	for {
		_ = unix.Pause() // PID 1 must not end
	}
}

func writeTo(path string) error { return os.WriteFile(path, []byte("1"), 0) }

// dropDisk lets go of the last disk: it removes the PCI device, whose child the
// virtio device is.
func dropDisk() error {
	disks, err := filepath.Glob("/sys/block/vd*/device")
	if err != nil || len(disks) == 0 {
		return fmt.Errorf("no disks: %w", err)
	}
	device, err := filepath.EvalSymlinks(disks[len(disks)-1])
	if err != nil {
		return err
	}
	return writeTo(filepath.Join(filepath.Dir(device), "remove"))
}

// askMetadata asks the metadata service, over an interface with an address of the
// same link (docs/mmds/mmds-user-guide.md, version 2).
func askMetadata() (string, error) {
	if err := setAddress("eth0", "169.254.77.2", "255.255.0.0"); err != nil {
		return "", err
	}
	const base = "http://169.254.169.254/"
	ask := func(method, path, key, value string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, base+path, nil)
		if err != nil {
			return "", err
		}
		req.Header.Set(key, value)
		req.Header.Set("Accept", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		data, err := io.ReadAll(resp.Body)
		return string(data), errors.Join(err, resp.Body.Close())
	}
	token, err := ask(http.MethodPut, "latest/api/token", "X-metadata-token-ttl-seconds", "60")
	if err != nil {
		return "", err
	}
	return ask(http.MethodGet, "", "X-metadata-token", token)
}

// setAddress configures an interface and brings it up (netdevice(7)).
func setAddress(name, address, mask string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		request uint
		text    string
	}{{unix.SIOCSIFADDR, address}, {unix.SIOCSIFNETMASK, mask}} {
		ip := netip.MustParseAddr(c.text).As4()
		if err := ifr.SetInet4Addr(ip[:]); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, c.request, ifr); err != nil {
			return err
		}
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func echoVsock(say func(string, ...any)) {
	l, err := vsock.Listen(1024, nil)
	if err != nil {
		say("labguest: no vsock: %v", err)
		return
	}
	say("labguest: vsock 1024")
	for {
		conn, err := l.Accept()
		if err != nil {
			say("labguest: vsock: %v", err)
			return
		}
		go func() {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}()
	}
}
