package proc

import (
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
)

// Spec is a process to start.
type Spec struct {
	Path  string
	Args  []string // without the program's name
	Dir   string
	Env   []string // nil gives an empty environment but for PATH
	Stdin *os.File // nil means /dev/null, for each of the three
	// Stdout and Stderr are files, not writers: a pipe of ours would end with us.
	Stdout, Stderr *os.File
	ExtraFiles     []*os.File // become 3, 4, …; nothing else is inherited

	// OwnPIDs makes it the first process of a new pid namespace (pid_namespaces(7)):
	// it sees no other processes, and all that it starts ends with it. Needs root.
	OwnPIDs bool

	// OwnNetwork gives it a network namespace in which there is nothing, and an IPC
	// namespace (network_namespaces(7), ipc_namespaces(7)). Needs root.
	OwnNetwork bool

	// UID and GID make it another user's, without further groups. 0 leaves it ours.
	UID, GID int
}

var started atomic.Int64

// Started returns how many processes were started so far.
func Started() int64 { return started.Load() }

// StartDetached starts a process in a session of its own, so that neither a
// closed terminal nor Ctrl-C reaches it. The caller may Wait for it, or leave it.
func StartDetached(s Spec) (*os.Process, Identity, error) {
	cmd := exec.Command(s.Path, s.Args...) //nolint:noctx // it outlives every context
	cmd.Dir, cmd.Env, cmd.ExtraFiles = s.Dir, s.Env, s.ExtraFiles
	if cmd.Env == nil {
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	}
	if s.Stdin != nil {
		cmd.Stdin = s.Stdin
	}
	if s.Stdout != nil {
		cmd.Stdout = s.Stdout
	}
	if s.Stderr != nil {
		cmd.Stderr = s.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.OwnPIDs {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID
	}
	if s.OwnNetwork {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC
	}
	if s.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID)} //nolint:gosec // not negative
	}
	if err := cmd.Start(); err != nil {
		return nil, Identity{}, fmt.Errorf("start %s: %w", s.Path, err)
	}
	started.Add(1)
	id, err := Of(cmd.Process.Pid)
	if err != nil { // it ended at once; its pid is not reused before we wait for it
		id = Identity{PID: cmd.Process.Pid, BootID: bootID()}
	}
	return cmd.Process, id, nil
}
