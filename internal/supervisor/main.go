package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Main is the supervisor. args are the token, which only marks the process, and
// the VM's directory. It returns the exit status of the process.
func Main(args []string) int {
	// A VM's own small process: its memory counts for each VM.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(25)
	// It ends with its VMM, not with a terminal or a service that is stopped.
	// Caught and dropped, not ignored: the VMM would inherit that, and then not end
	// on SIGTERM.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	relay := make(chan os.Signal, 8)
	signal.Notify(relay, syscall.SIGUSR1, syscall.SIGUSR2)
	out := os.NewFile(reportFD, "report")
	if out == nil || len(args) != 2 {
		return 2
	}
	syscall.CloseOnExec(reportFD)
	v, err := start(args[1])
	rep := report{}
	if err != nil {
		rep.Error = err.Error()
	} else {
		rep.Started = Started{VMM: v.id, Supervisor: proc.Self()}
	}
	// A spawner that died meanwhile leaves its journal to the next command.
	_ = json.NewEncoder(out).Encode(rep)
	_ = out.Close()
	if err != nil {
		return 1
	}
	return v.run(relay)
}

// supervised is the VMM and what the supervisor does for it.
type supervised struct {
	spec    Spec
	process *os.Process
	id      proc.Identity
	console *console
}

func start(dir string) (*supervised, error) {
	data, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return nil, err
	}
	v := &supervised{}
	if err := json.Unmarshal(data, &v.spec); err != nil {
		return nil, err
	}
	s := v.spec
	log, err := os.OpenFile(s.Log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the VMM's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	if v.console, err = newConsole(s); err != nil {
		return nil, err
	}
	stdin, stdout, err := vmmEnds(s.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(stdin.Close(), stdout.Close()) }()
	v.process, v.id, err = proc.StartDetached(proc.Spec{Path: s.Argv[0], Args: s.Argv[1:], Dir: s.Dir, Env: s.Env, Stdin: stdin, Stdout: stdout, Stderr: log})
	if err != nil {
		return nil, err
	}
	// The flag belongs to the open file, which the VMM shares, and starting a
	// process may have cleared it. A VMM that writes to a full console would stand
	// still when nobody reads it any more.
	if err := unix.SetNonblock(int(stdout.Fd()), true); err != nil {
		return nil, errors.Join(err, v.process.Kill())
	}
	if s.PIDFile != "" {
		if err := fsx.WriteFile(s.PIDFile, []byte(strconv.Itoa(v.id.PID)+"\n"), 0o600); err != nil {
			return nil, errors.Join(err, v.process.Kill())
		}
	}
	return v, nil
}

// run does the supervisor's work until the VMM ends. Of the signals that come by
// relay, SIGUSR1 ends the relay of the console to viewers, SIGUSR2 begins it.
func (v *supervised) run(relay <-chan os.Signal) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go v.console.relay()
	if v.spec.ConsoleSocket != "" {
		go v.console.serve()
		go func() {
			for sig := range relay {
				if sig == syscall.SIGUSR1 {
					v.console.unserve()
				} else {
					go v.console.serve()
				}
			}
		}()
	}
	if v.spec.MuxDevice != "" {
		go serveMux(ctx, v.spec.MuxDevice, v.spec.MuxSocket)
	}
	state, err := v.process.Wait()
	cancel()
	v.console.drain()
	exit := vmm.Exit{At: time.Now().UTC(), Code: -1}
	if err == nil {
		describe(&exit, state)
	}
	if exit.Code != 0 && exit.Reason == "" {
		exit.Reason = lastLine(v.spec.Log)
	}
	data, err := json.Marshal(exit)
	if err == nil {
		err = fsx.WriteFile(filepath.Join(v.spec.Dir, vmm.ExitFile), data, 0o600)
	}
	for _, path := range []string{filepath.Join(v.spec.Dir, consoleIn), filepath.Join(v.spec.Dir, consoleOut), v.spec.ConsoleSocket, v.spec.MuxSocket, v.spec.MuxDevice, v.spec.PIDFile} {
		if path != "" {
			_ = os.Remove(path) // the VM may have been removed with its directory
		}
	}
	if err != nil {
		return 1
	}
	return 0
}

// describe fills in how a process ended; a signal counts as 128 and its number,
// as shells have it.
func describe(e *vmm.Exit, state *os.ProcessState) {
	e.Code = state.ExitCode()
	ws, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return
	}
	e.Code, e.Signal = 128+int(ws.Signal()), unix.SignalName(ws.Signal())
	e.Reason = "the VMM was ended by " + e.Signal
}

// vmmEnds opens the VMM's ends of the console. Each is opened for both
// directions, so that the VMM itself keeps the FIFO alive: it gets neither an
// end of file nor a broken pipe when the supervisor dies. Its stdin is blocking,
// as programs expect.
func vmmEnds(dir string) (stdin, stdout *os.File, err error) {
	if stdin, err = os.OpenFile(filepath.Join(dir, consoleIn), os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(int(stdin.Fd()), false); err != nil { // os opens FIFOs for its poller
		return nil, nil, errors.Join(err, stdin.Close())
	}
	if stdout, err = openFIFO(filepath.Join(dir, consoleOut)); err != nil {
		return nil, nil, errors.Join(err, stdin.Close())
	}
	return stdin, stdout, nil
}

func openFIFO(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
