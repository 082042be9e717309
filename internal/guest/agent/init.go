package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

const (
	// stopTime is what a main process gets to end, as docker has it.
	stopTime = 10 * time.Second
	// termTime is what everything else gets.
	termTime = 2 * time.Second
)

// pid1 is the init of a guest that was made from a container image: it starts the
// agent and the main process, reaps whatever ends, and ends the machine when the main
// process does or when it is asked to.
type pid1 struct {
	cfg     guest.Container
	console *os.File
	agent   int // pids; 0 while there is none
	main    int
	again   chan struct{} // the agent is to be started anew
}

// Init is PID 1 of a guest that was made from a container image. It reads
// guest.Container from r and never returns but on an error before anything began.
func Init(r io.ReadCloser) error {
	debug.SetMemoryLimit(memoryLimit)
	p := &pid1{again: make(chan struct{}, 1)}
	err := json.NewDecoder(io.LimitReader(r, wire.MaxRequest)).Decode(&p.cfg)
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("read the init's configuration: %w", err)
	}
	if p.console, err = os.OpenFile("/dev/console", os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		p.console = os.Stderr
	}
	sigs := make(chan os.Signal, 32)
	signal.Notify(sigs, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR2)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // Ctrl-Alt-Del, Firecracker's way to ask, becomes SIGINT
	p.startAgent()
	if err := p.startMain(); err != nil {
		p.say("cannot run the main process: %v", err)
		p.down(sigs, p.cfg.PowerOff == "reboot")
	}
	for {
		select {
		case <-p.again:
			p.startAgent()
		case s := <-sigs:
			switch s {
			case syscall.SIGCHLD:
				if ended, how := p.reap(); ended {
					p.say("the main process %s", how)
					p.down(sigs, p.cfg.PowerOff == "reboot")
				}
			case syscall.SIGTERM:
				p.down(sigs, true)
			case syscall.SIGUSR2:
				p.down(sigs, false)
			case syscall.SIGINT:
				p.down(sigs, p.cfg.PowerOff == "reboot")
			}
		}
	}
}

func (p *pid1) say(format string, args ...any) {
	_, _ = fmt.Fprintf(p.console, "mvm: "+format+"\n", args...)
}

func (p *pid1) startAgent() {
	if !p.cfg.Agent {
		return
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		p.say("cannot start the agent: %v", err)
		return
	}
	defer func() { _ = null.Close() }()
	log := null
	if kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer func() { _ = kmsg.Close() }()
		log = kmsg
	}
	proc, err := os.StartProcess(guest.AgentPath, []string{"mvm-agent", "serve"}, &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + rootPath}, Files: []*os.File{null, log, log}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		p.say("cannot start the agent: %v", err)
		time.AfterFunc(retry, p.agentAgain)
		return
	}
	p.agent = proc.Pid
	_ = proc.Release()
}

func (p *pid1) agentAgain() {
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// startMain runs the main process on the console.
func (p *pid1) startMain() error {
	e := p.cfg.Main
	if e == nil {
		return nil
	}
	u, err := lookupUser(e.User)
	if err != nil {
		return err
	}
	env := loginEnv(u, e.Env)
	file, argv, err := command(*e, u, env)
	if err != nil {
		return err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	_ = p.console.Chown(int(u.UID), -1) // programs open /dev/stdout anew
	proc, err := os.StartProcess(file, argv, &os.ProcAttr{
		Dir: e.Dir, Env: env, Files: []*os.File{null, p.console, p.console},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}},
	})
	if err != nil {
		return explain(err, argv[0], e.Dir)
	}
	p.main = proc.Pid
	_ = proc.Release()
	return nil
}

// reap takes all that has ended, and says whether, and how, the main process did.
func (p *pid1) reap() (ended bool, how string) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || pid <= 0:
			return ended, how
		case pid == p.main:
			p.main, ended = 0, true
			how = "ended with status " + strconv.Itoa(ws.ExitStatus())
			if ws.Signaled() {
				how = "was ended by " + unix.SignalName(ws.Signal())
			}
		case pid == p.agent:
			p.agent = 0
			time.AfterFunc(retry, p.agentAgain)
		}
	}
}

// down ends the machine: the main process is asked first, then everything else.
func (p *pid1) down(sigs <-chan os.Signal, reboot bool) {
	if p.main != 0 {
		_ = syscall.Kill(p.main, stopSignal(p.cfg.StopSignal))
		p.await(sigs, stopTime, func() bool { return p.main == 0 })
	}
	_ = syscall.Kill(-1, syscall.SIGTERM)
	p.await(sigs, termTime, func() bool {
		_, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		return err == unix.ECHILD
	})
	_ = syscall.Kill(-1, syscall.SIGKILL)
	unix.Sync()
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	_ = unix.IoctlSetInt(int(p.console.Fd()), unix.TCSBRK, 1) // what was said goes out first
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if reboot {
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	for {
		if err := unix.Reboot(cmd); err != nil {
			p.say("cannot power off: %v", err)
		}
		time.Sleep(retry)
	}
}

// await reaps until done or the time is over.
func (p *pid1) await(sigs <-chan os.Signal, limit time.Duration, done func() bool) {
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		p.reap()
		if done() {
			return
		}
		select {
		case <-sigs:
		case <-end.C:
			return
		}
	}
}

// stopSignal reads the name or number of a signal; what is none is SIGTERM.
func stopSignal(s string) syscall.Signal {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	if sig := unix.SignalNum("SIG" + s); sig != 0 {
		return sig
	}
	return syscall.SIGTERM
}
