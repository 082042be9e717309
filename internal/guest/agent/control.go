package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// ready describes the guest.
func (s *Server) ready() wire.Ready {
	r := wire.Ready{Version: s.params.Version, BootID: line("/proc/sys/kernel/random/boot_id")}
	r.Hostname, _ = os.Hostname()
	up, _, _ := strings.Cut(line("/proc/uptime"), " ")
	r.Uptime, _ = strconv.ParseFloat(up, 64)
	r.Kernel = line("/proc/sys/kernel/osrelease")
	r.Init = initName()
	r.State = initState(r.Init)
	return r
}

func line(file string) string { return strings.TrimSpace(string(readBounded(file))) }

// initName says which init is PID 1, by the file it runs.
func initName() string {
	exe, err := os.Readlink("/proc/1/exe")
	if err != nil {
		return line("/proc/1/comm")
	}
	switch name := path.Base(exe); name {
	case "busybox":
		// One file plays many parts: as a shell it takes no requests.
		if comm := line("/proc/1/comm"); comm != "init" && comm != "linuxrc" {
			return comm
		}
		return name
	case "init":
		if _, err := os.Stat("/run/initctl"); err == nil {
			return "sysvinit"
		}
		if _, err := os.Stat("/dev/initctl"); err == nil {
			return "sysvinit"
		}
		return name
	default:
		return name
	}
}

// initState is "starting" until the init has taken over the machine.
func initState(init string) string {
	switch init {
	case "systemd":
		if _, err := os.Stat("/run/systemd/private"); err != nil {
			return "starting"
		}
	case "mvm-agent", "mvm":
		return "starting" // we are PID 1 still, about to exec
	}
	return "running"
}

func syncAll() { unix.Sync() }

func setTime(t wire.SetTime) error {
	if t.UnixNano <= 0 {
		return errors.New("the time is not after 1970")
	}
	ts := unix.NsecToTimespec(t.UnixNano)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// powerOff ends the machine in the way that makes its VMM end: Firecracker does
// on a reset, not on a power-off.
func (s *Server) powerOff() error {
	if s.params.PowerOff == "reboot" {
		return s.shutdown(true)
	}
	return s.shutdown(false)
}

func (s *Server) reboot() error { return s.shutdown(true) }

// shutdown asks the init; it returns before anything happens, so that the answer
// reaches the host.
func (s *Server) shutdown(reboot bool) error {
	name := initName()
	ask := askInit(name, reboot)
	go func() {
		defer s.guard("power off")
		time.Sleep(100 * time.Millisecond) // the reply goes out first
		s.hangup()
		if ask != nil {
			err := ask()
			if err == nil {
				return
			}
			s.logf("asking %s failed, going down without it: %v", name, err)
		}
		forceDown(reboot)
	}()
	return nil
}

// askInit returns how to ask this init, or nil when there is nobody to ask.
//   - systemd(1), SIGNALS: SIGRTMIN+4 poweroff.target, SIGRTMIN+5 reboot.target
//   - busybox init: SIGUSR2 power off, SIGTERM reboot (init/init.c); ours the same
//   - others by their own program, which knows the protocol of its version
func askInit(name string, reboot bool) func() error {
	const sigrtmin = 34 // glibc's: the kernel's 32, less two that it keeps
	pick := func(on, off syscall.Signal) func() error {
		sig := off
		if reboot {
			sig = on
		}
		return func() error { return syscall.Kill(1, sig) }
	}
	program := func(off, on []string) func() error {
		argv := off
		if reboot {
			argv = on
		}
		return func() error { return runProgram(argv) }
	}
	switch name {
	case "systemd":
		return pick(sigrtmin+5, sigrtmin+4)
	case "busybox", path.Base(guest.ContainerPID1):
		return pick(syscall.SIGTERM, syscall.SIGUSR2)
	case "openrc-init":
		return program([]string{"/sbin/openrc-shutdown", "-p", "now"}, []string{"/sbin/openrc-shutdown", "-r", "now"})
	case "sysvinit", "init", "runit", "s6-svscan", "s6-linux-init", "dinit", "finit":
		return program([]string{"/sbin/poweroff"}, []string{"/sbin/reboot"})
	}
	return nil
}

func runProgram(argv []string) error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + rootPath}, Files: []*os.File{null, null, null},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	st, err := p.Wait()
	if err == nil && !st.Success() {
		err = fmt.Errorf("%s: %s", argv[0], st)
	}
	return err
}

// forceDown ends the machine where PID 1 is a shell or a program: everybody gets
// a SIGTERM and a moment, then the kernel is asked.
func forceDown(reboot bool) {
	_ = syscall.Kill(-1, syscall.SIGTERM)
	time.Sleep(500 * time.Millisecond)
	unix.Sync()
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if reboot {
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	_ = unix.Reboot(cmd)
}
