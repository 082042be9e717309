package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that the process named by an identity has ended.
var ErrGone = errors.New("the process has ended")

// bootID is read once: it cannot change while we run.
var bootID = sync.OnceValue(func() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
})

// Rebooted reports whether the host was started again since the process was. It
// is false for the zero identity, which names none.
func Rebooted(id Identity) bool { return id.BootID != "" && id.BootID != bootID() }

// Self returns our own identity.
func Self() Identity {
	id, err := Of(os.Getpid())
	if err != nil { // /proc is not there: still better than a pid that is not ours
		return Identity{PID: os.Getpid(), BootID: bootID()}
	}
	return id
}

// Of returns the identity of the process that has a pid now. A process that has
// ended, a zombie included, gives ErrGone.
func Of(pid int) (Identity, error) {
	ended, start, err := stat(pid)
	if err != nil {
		return Identity{}, err
	}
	if ended {
		return Identity{}, ErrGone
	}
	return Identity{PID: pid, StartTime: start, BootID: bootID()}, nil
}

// stat reads from /proc/PID/stat (proc(5)) whether a process has ended, and when
// it was started. The name in field 2 may hold anything but ends at the last
// parenthesis. A zombie that has threads left has not ended: its first thread
// has, and the others still work.
func stat(pid int) (ended bool, start uint64, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return true, 0, ErrGone
	case err != nil:
		return false, 0, fmt.Errorf("look at process %d: %w", pid, err)
	}
	const state, numThreads, startTime = 0, 17, 19 // fields 3, 20 and 22
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) <= startTime {
		return false, 0, fmt.Errorf("/proc/%d/stat cannot be read", pid)
	}
	start, err = strconv.ParseUint(fields[startTime], 10, 64)
	ended = fields[state] == "X" || fields[state] == "Z" && fields[numThreads] <= "1" && len(fields[numThreads]) == 1
	return ended, start, err
}

// Alive reports whether the process still runs. A zombie does not. Where it cannot
// be told, as with too many open files, the process is taken to run: what is held
// for dead is started again.
func Alive(id Identity) bool { return !errors.Is(check(id), ErrGone) }

// check returns ErrGone when the process has ended, and another error when that
// cannot be told.
func check(id Identity) error {
	if id.PID <= 0 || id.BootID != bootID() {
		return ErrGone
	}
	now, err := Of(id.PID)
	if err == nil && now != id {
		return ErrGone
	}
	return err
}

// open returns a pidfd of the process, or ErrGone. It is checked after opening:
// the fd then holds on to that very process.
func open(id Identity) (int, error) {
	if id.PID <= 0 {
		return -1, ErrGone
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		// While a process is reaped its pid is found without a process: EINVAL,
		// or ENOENT in later kernels.
		if errors.Is(err, unix.ESRCH) || errors.Is(check(id), ErrGone) {
			return -1, ErrGone
		}
		return -1, fmt.Errorf("pidfd_open %d: %w", id.PID, err)
	}
	if err := check(id); err != nil { // nothing is sent to a process that may be another
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Signal sends a signal to the process, and to no other that has its pid by now.
func Signal(id Identity, sig unix.Signal) error {
	fd, err := open(id)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return ErrGone
		}
		return fmt.Errorf("signal process %d: %w", id.PID, err)
	}
	return nil
}

// WaitExit returns when the process has ended, or with ctx's error.
func WaitExit(ctx context.Context, id Identity) error {
	fd, err := open(id)
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return wait(ctx, id, fd)
}

// wait returns when the process behind a pidfd has ended, or with ctx's error.
func wait(ctx context.Context, id Identity, fd int) error {
	limit := 50 // ms: short enough to notice a cancelled context, long enough to cost nothing
	if ctx.Done() == nil {
		limit = -1
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, limit) //nolint:gosec // fds are small
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", id.PID, err)
		}
		if n > 0 { // all its threads have ended
			return nil
		}
	}
}

// Kill ends the process: SIGTERM, then after grace SIGKILL, or SIGKILL at once
// with a grace of 0 or where SIGTERM cannot reach it. It returns when the process
// has ended; one that had ended before is no error.
func Kill(ctx context.Context, id Identity, grace time.Duration) error {
	if grace > 0 && !deaf(id.PID) {
		if err := Signal(id, unix.SIGTERM); err != nil {
			return ignoreGone(err)
		}
		soft, cancel := context.WithTimeout(ctx, grace)
		err := WaitExit(soft, id)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := Signal(id, unix.SIGKILL); err != nil {
		return ignoreGone(err)
	}
	return WaitExit(ctx, id)
}

// deaf reports whether SIGTERM has no effect on a process: the kernel drops it for
// the first process of a pid namespace that has no handler (pid_namespaces(7)).
func deaf(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	return err == nil && dropsTerm(string(data))
}

// dropsTerm reads that from /proc/PID/status.
func dropsTerm(status string) bool {
	first, handled := false, true
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "NSpid": // in each namespace, ours first
			pids := strings.Fields(value)
			first = len(pids) > 1 && pids[len(pids)-1] == "1"
		case "SigCgt":
			caught, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			handled = err != nil || caught>>(unix.SIGTERM-1)&1 == 1
		}
	}
	return first && !handled
}

func ignoreGone(err error) error {
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// FindByArg returns the live processes that have one of the tokens in one of
// their arguments, ourselves left out. It finds what a crash has lost sight of.
func FindByArg(tokens ...string) ([]Identity, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var found []Identity
	for _, p := range paths {
		dir := filepath.Dir(p)
		data := arguments(dir)
		if !slices.ContainsFunc(tokens, func(t string) bool { return t != "" && bytes.Contains(data, []byte(t)) }) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if id, err := Of(pid); err == nil {
			found = append(found, id)
		}
	}
	return found, nil
}

const (
	execLooks = 20 // at a process that is just being replaced by a program
	execPause = time.Millisecond
)

// arguments reads the arguments of a process, given its directory in /proc. A
// process that is just executing a program has none for a moment, and is looked at
// again; kernel threads and zombies, which never have any, have no program either.
func arguments(dir string) []byte {
	for n := 0; ; n++ {
		data, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(data) > 0 || n == execLooks {
			return data
		}
		if _, err := os.Readlink(dir + "/exe"); err != nil && !errors.Is(err, fs.ErrPermission) {
			return nil
		}
		time.Sleep(execPause)
	}
}
