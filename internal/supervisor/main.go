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
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Main is the supervisor. args are the token, which only marks the process, and
// the VM's directory, and to take over a VMM that runs, its identity. It returns
// the exit status of the process.
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
	if out == nil || len(args) < 2 {
		return 2
	}
	syscall.CloseOnExec(reportFD)
	proc.CloseInherited(reportFD)
	v, err := begin(args[1], args[2:])
	rep := report{}
	if err != nil {
		rep.Error = err.Error()
	} else {
		rep.Started = Started{VMM: v.id, Supervisor: proc.Self()}
		if v.spec.ConsoleSocket != "" {
			v.console.serve() // who hears of the VM may attach at once
		}
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
	lock    *fsx.Lock   // of the only supervisor of the VM
	process *os.Process // nil when another supervisor has started it
	id      proc.Identity
	console *console
	log     boundedLog // of the VMM
	stderr  *source
	pipes   []*logPipe

	ended  chan endedServer // which server has ended before the VMM did
	ending atomic.Bool      // the servers are being ended
}

// begin reads what is to be done, and starts the VMM or takes over the one that
// runs.
func begin(dir string, running []string) (*supervised, error) {
	path := filepath.Join(dir, specFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	v := &supervised{}
	if err := json.Unmarshal(data, &v.spec); err != nil {
		return nil, err
	}
	if v.lock, err = fsx.TryLock(path); err != nil {
		return nil, fmt.Errorf("take over the VM: %w", err)
	}
	keepCrash(dir)
	if len(running) > 0 {
		return v, v.adopt(running[0])
	}
	return v, v.start()
}

func (v *supervised) start() error {
	s := v.spec
	if err := v.prepare(); err != nil {
		return err
	}
	if err := v.log.restart(); err != nil { // it is that of the last run
		return fmt.Errorf("clear the VMM's log: %w", err)
	}
	ends, err := openVMMEnds(s.Dir)
	if err != nil {
		return err
	}
	defer ends.close()
	if err := v.startServers(); err != nil {
		return errors.Join(err, v.endServers())
	}
	v.process, v.id, err = startVMM(proc.Spec{Path: s.Argv[0], Args: s.Argv[1:], Dir: s.Dir, Env: s.Env, Stdin: ends.stdin, Stdout: ends.stdout, Stderr: ends.stderr}, s.Jail)
	if err != nil {
		return errors.Join(err, v.endServers())
	}
	err = ends.setNonblock()
	if err == nil && s.PIDFile != "" {
		err = fsx.WriteFile(s.PIDFile, []byte(strconv.Itoa(v.id.PID)+"\n"), 0o600)
	}
	if err != nil {
		return errors.Join(err, v.process.Kill(), v.endServers())
	}
	return nil
}

// prepare makes what the VMM will print to.
func (v *supervised) prepare() error {
	if err := makeFIFOs(v.spec.Dir); err != nil {
		return err
	}
	v.log.path = v.spec.Log
	if err := v.log.open(); err != nil {
		return fmt.Errorf("open the VMM's log: %w", err)
	}
	for _, p := range v.spec.Pipes {
		pipe, err := newLogPipe(p)
		if err != nil {
			return err
		}
		v.pipes = append(v.pipes, pipe)
	}
	var err error
	if v.console, err = newConsole(v.spec); err != nil {
		return err
	}
	v.stderr, err = openSource(filepath.Join(v.spec.Dir, stderrOut), v.log.write)
	return err
}

// run does the supervisor's work until the VMM ends. Of the signals that come by
// relay, SIGUSR1 ends the relay of the console to viewers, SIGUSR2 begins it.
func (v *supervised) run(relay <-chan os.Signal) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go v.console.out.relay()
	go v.stderr.relay()
	for _, p := range v.pipes {
		go p.out.relay()
	}
	if v.spec.ConsoleSocket != "" {
		go func() {
			for sig := range relay {
				if sig == syscall.SIGUSR1 {
					v.console.unserve()
				} else {
					v.console.serve()
				}
			}
		}()
	}
	idle := time.AfterFunc(settled, shrink)
	defer idle.Stop()
	go shrinkAgain(ctx)
	if v.spec.MuxDevice != "" {
		go serveMux(ctx, v.spec.MuxDevice, v.spec.MuxSocket, func() { idle.Reset(settled) })
	}
	exit := v.wait()
	cancel()
	server := v.serverEnded(exit)
	_ = v.endServers() // whoever takes the VM up again ends what is left
	v.stderr.finish()
	v.log.close()
	for _, p := range v.pipes {
		p.finish()
	}
	v.console.finish()
	if exit.Code != 0 && exit.Reason == "" {
		exit.Reason = lastLine(v.spec.Log)
	}
	if server != nil {
		exit.Reason = server.reason(v.spec)
	}
	err := v.leave(exit)
	v.notify()
	v.console.waitViewers()
	if err != nil {
		return 1
	}
	return 0
}

// leave writes down how the VMM ended, and removes what was only for the time
// that it ran.
func (v *supervised) leave(exit vmm.Exit) error {
	s := v.spec
	data, err := json.Marshal(exit)
	if err == nil {
		err = fsx.WriteFile(filepath.Join(s.Dir, vmm.ExitFile), data, 0o600)
	}
	s.sweep()
	return err
}

// sweep removes what is there only while the VMM runs.
func (s Spec) sweep() {
	paths := []string{s.ConsoleSocket, s.MuxSocket, s.MuxDevice, s.PIDFile, filepath.Join(s.Dir, crashFile)}
	for _, name := range fifos {
		paths = append(paths, filepath.Join(s.Dir, name))
	}
	for _, p := range s.Pipes {
		paths = append(paths, p.FIFO)
	}
	for _, b := range s.Servers {
		paths = append(paths, b.Socket)
	}
	for _, path := range paths {
		if path != "" {
			_ = os.Remove(path) // the VM may have been removed with its directory
		}
	}
}

// wait returns how the VMM ended.
func (v *supervised) wait() vmm.Exit {
	exit := vmm.Exit{Code: -1}
	if v.process != nil {
		if state, err := v.process.Wait(); err == nil {
			if status, ok := state.Sys().(syscall.WaitStatus); ok {
				describe(&exit, status)
			}
		}
	} else {
		status, known, _ := proc.WaitStatus(context.Background(), v.id)
		exit.Reason = "its exit status went to nobody: the supervisor that had started it was gone"
		if known {
			exit.Reason = ""
			describe(&exit, syscall.WaitStatus(status))
		}
	}
	exit.At = time.Now().UTC()
	return exit
}

// describe fills in how a process ended; a signal counts as 128 and its number,
// as shells have it.
func describe(e *vmm.Exit, status syscall.WaitStatus) {
	e.Code = status.ExitStatus()
	if status.Signaled() {
		e.Code, e.Signal = 128+int(status.Signal()), unix.SignalName(status.Signal())
		e.Reason = "the VMM was ended by " + e.Signal
	}
}
