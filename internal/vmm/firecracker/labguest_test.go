package firecracker

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// guestMain is the guest of the tests with the real Firecracker: this very test
// binary, as /init of an initramfs. It behaves as fakevmm's guest does: it says
// on the console that it is up, repeats there what it reads, ends on the line
// "poweroff" or on Ctrl-Alt-Del, and echoes what comes on vsock port 1024.
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
	go echoVsock(say)
	say("labguest: ready")
	if args, err := os.ReadFile("/proc/cmdline"); err == nil && strings.Contains(string(args), fakevmm.PowerOffArg) {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		say("%s", line)
		if line == "poweroff" {
			_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		}
	}
	say("labguest: the console ended: %v", lines.Err())
	for {
		_ = unix.Pause() // PID 1 must not end
	}
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
