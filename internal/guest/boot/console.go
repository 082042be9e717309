package boot

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// console is where a person looks when a guest does not come up. It is written
// with plain system calls so that a full or missing console stops nothing.
type console struct{ fd int }

// openConsole reopens /dev/console after devtmpfs is mounted; what the kernel
// gave us as standard error may be nothing.
func openConsole() console {
	fd, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		fd = 2
	}
	return console{fd}
}

// say writes one line with our prefix, whatever is in the message.
func (c console) say(format string, args ...any) {
	msg := strings.Join(strings.FieldsFunc(fmt.Sprintf(format, args...), func(r rune) bool {
		return r == '\n' || r == '\r'
	}), "; ")
	_, _ = unix.Write(c.fd, []byte("mvm: "+msg+"\n"))
}

// drain waits until the lines are out, before the machine goes off.
func (c console) drain() { _ = unix.IoctlSetInt(c.fd, unix.TCSBRK, 1) }

// PowerOff ends the machine at once: how says whether a power-off or a reset
// makes the VMM end (guest.BootConfig.PowerOff). It returns only on failure.
func PowerOff(how string) error {
	unix.Sync()
	if how == "reboot" {
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// guessPowerOff says what makes the VMM end where the configuration cannot be read.
// Firecracker's command line has reboot=k; it has no power button.
func guessPowerOff(cmdline string) string {
	if slices.Contains(strings.Fields(cmdline), "reboot=k") {
		return "reboot"
	}
	return "acpi"
}

// giveUp ends the machine: PID 1 must never return, or the kernel panics.
func (c console) giveUp(how string, err error) {
	if how == "" {
		text, _ := os.ReadFile("/proc/cmdline")
		how = guessPowerOff(string(text))
	}
	c.say("cannot boot: %v", err)
	c.say("powering off")
	c.drain()
	if err := PowerOff(how); err != nil {
		c.say("power off: %v", err)
	}
	for {
		time.Sleep(time.Hour)
	}
}

// uptime is the seconds since the kernel started, to measure phases.
func uptime() string {
	data, _ := os.ReadFile("/proc/uptime")
	s, _, _ := strings.Cut(string(data), " ")
	return s
}

// phases measures what boot does, for the kernel parameter mvm_timing=1 (the
// kernel gives parameters that it does not know to init's environment).
type phases struct {
	on   bool
	last time.Time
	text string
}

func (p *phases) done(name string) {
	if !p.on {
		return
	}
	now := time.Now()
	p.text += fmt.Sprintf(", %s %d ms", name, now.Sub(p.last).Milliseconds())
	p.last = now
}
