// Package supervisor is the small process that stays with a VM: it owns the VMM,
// relays the serial console, holds the channel to the guest where that is a
// serial port, and writes down how the VMM ended. It is mvm executed again, so
// what this package imports is held small. It knows no store, no network and no
// particular VMM.
package supervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Command is the first argument of a supervisor; a program that sees it calls
// Main with those that follow.
const Command = "__supervise"

// specFile is the supervisor's Spec, in the VM's directory.
const specFile = "supervisor.json"

// Launcher is the program that becomes the supervisor.
type Launcher struct {
	Exe  string
	Args []string // before Command

	// Ended are the arguments, after Args, of the process that is told when a VMM
	// has ended; EndedToken follows them. nil tells nobody.
	Ended []string
}

// Spec is what a supervisor is to do. Paths are absolute.
type Spec struct {
	ID            string   `json:"id"`   // of the VM
	Dir           string   `json:"dir"`  // of the VM; the VMM's working directory
	Argv          []string `json:"argv"` // the VMM; Token(ID) stands in one of the arguments
	Env           []string `json:"env"`
	Log           string   `json:"log"`               // gets the VMM's stderr, of this run only
	Console       string   `json:"console"`           // gets the serial console
	ConsoleSocket string   `json:"console_socket"`    // where viewers attach; "" for none
	MuxDevice     string   `json:"mux_device"`        // the VMM's socket of the guest channel; "" for none
	MuxSocket     string   `json:"mux_socket"`        // offers streams to the guest
	PIDFile       string   `json:"pid_file"`          // "" for none
	Pipes         []Pipe   `json:"pipes"`             // what the VMM writes by itself
	Jail          *Jail    `json:"jail,omitempty"`    // nil starts the VMM in our own namespaces
	Servers       []Server `json:"servers,omitempty"` // ended with the VMM
	Ended         []string `json:"ended"`             // executed when the VMM has ended and vmm.ExitFile is there; Spawn sets it
}

// Pipe is a FIFO that the VMM opens by its name, in place of a file that would grow
// without end. What comes is appended to a log of bounded size.
type Pipe struct {
	FIFO string `json:"fifo"` // is made when it is not there, and removed with the VMM's end
	File string `json:"file"`
}

// Token is what marks the processes of a VM: it stands in the command line of its
// supervisor and its VMM, and nowhere else.
func Token(vmID string) string { return "mvm-" + vmID }

// Started are the processes of a VM that runs.
type Started struct {
	VMM        proc.Identity `json:"vmm"`
	Supervisor proc.Identity `json:"supervisor"`
}

// report is what the supervisor says over the pipe that it inherits as fd 3.
type report struct {
	Started
	Error string `json:"error"`
}

const reportFD = 3

// Spawn starts a supervisor, which starts the VMM, and returns when the VMM's
// process runs. Both outlive the caller. On error, ctx's included, neither is
// left.
func Spawn(ctx context.Context, l Launcher, s Spec) (Started, error) {
	if err := clear(s.Dir); err != nil {
		return Started{}, mvm.Errorf(mvm.ErrUnavailable, "cannot prepare %s: %w", s.Dir, err)
	}
	if len(l.Ended) > 0 {
		s.Ended = slices.Concat([]string{l.Exe}, l.Args, l.Ended, []string{EndedToken(s.ID)})
	}
	data, err := json.Marshal(s)
	if err != nil {
		return Started{}, mvm.Errorf(mvm.ErrInvalid, "the supervisor's task: %w", err)
	}
	if err := fsx.WriteFile(filepath.Join(s.Dir, specFile), data, 0o600); err != nil {
		return Started{}, mvm.Errorf(mvm.ErrUnavailable, "cannot write the supervisor's task: %w", err)
	}
	started, self, err := l.execute(ctx, s.ID, s.Dir)
	if err == nil {
		return started, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	defer s.sweep() // whatever the supervisor had come to before it was killed
	if self.PID > 0 {
		err = errors.Join(err, proc.Kill(undo, self, 0))
	}
	return Started{}, errors.Join(err, End(undo, s.ID, 0), clear(s.Dir))
}

// execute starts a supervisor, self, and returns what it reports. An error leaves
// it to its own end.
func (l Launcher) execute(ctx context.Context, vmID, dir string, more ...string) (started Started, self proc.Identity, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return started, self, mvm.Errorf(mvm.ErrUnavailable, "cannot make a pipe: %w", err)
	}
	defer func() { _ = r.Close() }()
	p, self, err := proc.StartDetached(proc.Spec{
		Path: l.Exe, Args: slices.Concat(l.Args, []string{Command, Token(vmID), dir}, more), Dir: dir,
		Env: childEnv(), ExtraFiles: []*os.File{w},
	})
	_ = w.Close()
	if err != nil {
		return started, self, mvm.Errorf(mvm.ErrUnavailable, "cannot start the supervisor: %w", err)
	}
	go func() { _, _ = p.Wait() }() // no zombie while we live; it ends much later
	rep, err := readReport(ctx, r)
	return rep.Started, self, err
}

// childEnv is what a supervisor needs of the environment: where programs are,
// and where a coverage run collects.
func childEnv() []string {
	var env []string
	for _, name := range []string{"PATH", "GOCOVERDIR"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func readReport(ctx context.Context, r *os.File) (report, error) {
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(r).ReadBytes('\n')
	var rep report
	switch {
	case ctx.Err() != nil:
		return rep, ctx.Err()
	case err != nil:
		return rep, mvm.Errorf(mvm.ErrUnavailable, "the supervisor ended before it started the VMM").WithHint("see 'mvm host status'")
	}
	if err := json.Unmarshal(line, &rep); err != nil {
		return rep, mvm.Errorf(mvm.ErrBroken, "the supervisor's report cannot be read: %w", err)
	}
	if rep.Error != "" {
		return rep, mvm.Errorf(mvm.ErrUnavailable, "%s", rep.Error).WithHint("see 'mvm host status'")
	}
	return rep, nil
}

// clear removes what the last run has left in a VM's directory.
func clear(dir string) error {
	var errs []error
	for _, name := range append([]string{specFile, vmm.ExitFile, crashFile, crashFile + oldCrash}, fifos...) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// lastLine returns the last line of a file that says something, for errors; ""
// when there is none.
func lastLine(path string) string { return lastLineOf(path, "") }

// lastLineOf is lastLine among the lines that begin with a text.
func lastLineOf(path, begin string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	const tail = 4096
	if fi, err := f.Stat(); err == nil && fi.Size() > tail {
		_, _ = f.Seek(-tail, 2) // reading from the start instead does no harm
	}
	buf := make([]byte, tail)
	n, _ := f.Read(buf)
	lines := strings.Split(strings.TrimSpace(string(buf[:n])), "\n")
	for _, line := range slices.Backward(lines) {
		if strings.HasPrefix(line, begin) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
