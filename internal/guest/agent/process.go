package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest/account"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// startError is a command that did not start, with the status a shell gives.
type startError struct {
	code int
	err  error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// process is a command that runs. It leads a session and process group of its
// own, so that a signal reaches what it started.
type process struct {
	p      *os.Process
	pty    *pty
	stdin  io.Writer
	in     *os.File // the write end of stdin's pipe; nil on a pty
	stdout *os.File
	stderr *os.File // nil on a pty

	mu     sync.Mutex
	gone   bool // waited for: the pid may be another process's now
	exited atomic.Bool
}

// startProcess runs e as its user.
func startProcess(e wire.Exec, tty *pty) (*process, error) {
	u, err := lookupUser(e.User)
	if err != nil {
		return nil, &startError{126, err}
	}
	env := loginEnv(u, e.Env)
	file, argv, err := command(e, u, env)
	if err != nil {
		return nil, err
	}
	dir := e.Dir
	if dir == "" {
		dir = homeOf(u)
	}
	attr := &os.ProcAttr{Dir: dir, Env: env, Sys: &syscall.SysProcAttr{Setsid: true}}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	pr := &process{pty: tty}
	theirs, err := pr.streams(attr, u)
	if err != nil {
		return nil, &startError{126, err}
	}
	pr.p, err = os.StartProcess(file, argv, attr)
	for _, f := range theirs {
		_ = f.Close()
	}
	if err != nil {
		pr.release()
		return nil, explain(err, argv[0], dir)
	}
	// Ours is -900, which children inherit.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pr.p.Pid), []byte("0"), 0o644)
	return pr, nil
}

// explain tells a missing directory and a missing program apart: the kernel
// says ENOENT for both.
func explain(err error, name, dir string) error {
	if st, statErr := os.Stat(dir); statErr != nil || !st.IsDir() {
		return &startError{126, fmt.Errorf("cannot change to the directory %q", dir)}
	}
	code := 126
	if errors.Is(err, os.ErrNotExist) {
		code = 127
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return &startError{code, fmt.Errorf("cannot run %q: %w", name, err)}
}

// streams connects the command's standard streams, and returns the ends that
// are the command's, to be closed here once it runs.
func (p *process) streams(attr *os.ProcAttr, u account.User) ([]*os.File, error) {
	if p.pty != nil {
		tty, err := p.pty.slave(u.UID)
		if err != nil {
			return nil, err
		}
		attr.Files = []*os.File{tty, tty, tty}
		attr.Sys.Setctty, attr.Sys.Ctty = true, 0
		p.stdin, p.stdout = p.pty.master, p.pty.master
		return []*os.File{tty}, nil
	}
	var theirs []*os.File
	fail := func(err error) ([]*os.File, error) {
		for _, f := range theirs {
			_ = f.Close()
		}
		p.release()
		return nil, err
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	p.in, p.stdin, theirs = inW, inW, append(theirs, inR)
	var outW, errW *os.File
	if p.stdout, outW, err = os.Pipe(); err != nil {
		return fail(err)
	}
	theirs = append(theirs, outW)
	if p.stderr, errW, err = os.Pipe(); err != nil {
		return fail(err)
	}
	theirs = append(theirs, errW)
	attr.Files = []*os.File{inR, outW, errW}
	return theirs, nil
}

// command resolves what is to be run: the file and its argument list.
func command(e wire.Exec, u account.User, env []string) (file string, argv []string, err error) {
	if len(e.Argv) > 0 {
		file, err = lookPath(e.Argv[0], env)
		return file, e.Argv, err
	}
	sh := u.Shell
	if _, err := os.Stat(sh); err != nil {
		sh = "/bin/sh"
	}
	if e.Shell != "" {
		return sh, []string{path.Base(sh), "-c", e.Shell}, nil
	}
	return sh, []string{"-" + path.Base(sh)}, nil // the dash makes it a login shell
}

// How much of a stream is moved at once.
const (
	pumpBuffer = 32 << 10
	dataBuffer = 256 << 10
)

// pipeSize is that of the pipes of commands that move much data: each time one is
// full, or empty, costs two changes of process.
const pipeSize = 512 << 10

// enlarge gives the command larger pipes, where the kernel lets it have them.
func (p *process) enlarge() {
	for _, f := range []*os.File{p.in, p.stdout} {
		if f == nil {
			continue
		}
		if raw, err := f.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
		}
	}
}

// pump copies until the stream's end. Once the command has ended, it goes on
// only as long as something comes: a daemon that inherited the stream must not
// keep the session open.
func (p *process) pump(w io.Writer, f *os.File, size int) error {
	buf := make([]byte, size)
	for {
		if p.exited.Load() {
			_ = f.SetReadDeadline(time.Now().Add(drainAfterExit))
		}
		n, err := f.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && n > 0:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return p.rest(w, f, buf)
		default: // EOF, EIO of a pty whose last user is gone, or idle after the end
			return nil
		}
	}
}

// rest copies what is in the stream at this moment. A deadline that has passed makes
// a read fail also where there is something to be read, as there may be in a guest
// that had no time to look.
func (p *process) rest(w io.Writer, f *os.File, buf []byte) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // it was closed: nobody reads on
	}
	for {
		_ = f.SetReadDeadline(time.Time{})
		var n int
		var readErr error
		if err := raw.Read(func(fd uintptr) bool {
			n, readErr = unix.Read(int(fd), buf)
			return true // never wait
		}); err != nil || readErr != nil || n <= 0 {
			return nil //nolint:nilerr // EAGAIN, EOF or EIO: that was all
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// exitState is how a command ended.
type exitState struct {
	code int
	sig  syscall.Signal
	core bool
}

func (s exitState) signalled() (name string, core, ok bool) {
	if s.sig == 0 {
		return "", false, false
	}
	for n, sig := range signals {
		if sig == s.sig {
			return n, s.core, true
		}
	}
	return fmt.Sprintf("SIG%d@mvm", int(s.sig)), s.core, true
}

func (p *process) wait() exitState {
	// WNOWAIT first: while the zombie stands its pid cannot be reused, so that
	// signal can never hit another process.
	for {
		if err := unix.Waitid(unix.P_PID, p.p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			break
		}
	}
	p.mu.Lock()
	p.gone = true
	st, err := p.p.Wait()
	p.mu.Unlock()
	p.exited.Store(true)
	for _, f := range []*os.File{p.stdout, p.stderr} {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(drainAfterExit))
		}
	}
	if err != nil {
		return exitState{code: 255}
	}
	ws, _ := st.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return exitState{sig: ws.Signal(), core: ws.CoreDump()}
	}
	return exitState{code: ws.ExitStatus()}
}

// signals are SSH's names (RFC 4254, section 6.10) and some that docker users
// send besides.
var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP,
	"ILL": syscall.SIGILL, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE,
	"QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "TERM": syscall.SIGTERM, "USR1": syscall.SIGUSR1,
	"USR2": syscall.SIGUSR2, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "TSTP": syscall.SIGTSTP,
	"BUS": syscall.SIGBUS, "TRAP": syscall.SIGTRAP, "SYS": syscall.SIGSYS, "XCPU": syscall.SIGXCPU,
	"WINCH": syscall.SIGWINCH,
}

// signal sends to the command's process group.
func (p *process) signal(name string) bool {
	sig, ok := signals[name]
	if !ok {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return false
	}
	return syscall.Kill(-p.p.Pid, sig) == nil
}

func (p *process) hangup() {
	p.signal("HUP")
	p.signal("CONT") // a stopped process would not see it
}

func (p *process) closeStdin() {
	if p.in != nil {
		_ = p.in.Close()
	}
}

// release closes what is ours. It may be called twice.
func (p *process) release() {
	for _, f := range []*os.File{p.in, p.stdout, p.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}
