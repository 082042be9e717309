// Package run is the one place that starts tools and waits for them. It takes
// argument lists, never a shell string. Processes that outlive us are the
// business of package proc.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mvmctl/mvm"
)

// Cmd is a tool to run.
type Cmd struct {
	Name   string   // looked up in PATH unless it has a slash
	Args   []string // without the name
	Dir    string
	Env    []string // nil inherits ours
	Stdin  io.Reader
	Stdout io.Writer // nil collects into Result.Stdout
	Stderr io.Writer // gets a copy of stderr; the end of it is kept for the error anyway
	Attr   *syscall.SysProcAttr
}

// Result is what a tool that ended with status 0 left.
type Result struct {
	Stdout []byte
	Stderr []byte // its last 4 KiB
}

// Runner runs tools. The real one is Host; tests use a semantic fake.
type Runner interface {
	// Run runs the tool to its end. A tool that is missing gives
	// mvm.ErrUnavailable with the package to install as hint, one that fails an
	// *ExitError. When ctx ends, the tool and what it started get SIGTERM, and
	// after two seconds SIGKILL.
	Run(ctx context.Context, c Cmd) (Result, error)
}

// ExitError says that a tool ended with another status than 0.
type ExitError struct {
	Name   string
	Args   []string
	Code   int // -1 when a signal ended it
	Stderr string
}

// Error names the tool, its status and the last line that it wrote to stderr.
func (e *ExitError) Error() string {
	msg := fmt.Sprintf("%s failed with status %d", e.Name, e.Code)
	if e.Code < 0 {
		msg = e.Name + " was ended by a signal"
	}
	if lines := strings.Split(strings.TrimSpace(e.Stderr), "\n"); lines[len(lines)-1] != "" {
		msg += ": " + lines[len(lines)-1]
	}
	return msg
}

// packages says which Debian package has a tool, for the hint.
var packages = map[string]string{
	"mke2fs": "e2fsprogs", "resize2fs": "e2fsprogs", "debugfs": "e2fsprogs", "e2fsck": "e2fsprogs",
	"qemu-img": "qemu-utils", "qemu-system-x86_64": "qemu-system-x86", "mmdebstrap": "mmdebstrap",
	"debootstrap": "debootstrap", "ssh-keygen": "openssh-client", "ssh": "openssh-client",
	"sqfs2tar": "squashfs-tools-ng", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs",
	"iptables-save": "iptables", "iptables-restore": "iptables", "iptables-legacy-save": "iptables", "iptables-legacy-restore": "iptables",
	"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg", "newuidmap": "uidmap",
}

// Host runs tools on this host.
type Host struct{ started atomic.Int64 }

// Started returns how many child processes were started so far.
func (h *Host) Started() int64 { return h.started.Load() }

// Run implements Runner.
func (h *Host) Run(ctx context.Context, c Cmd) (Result, error) {
	path, err := Look(c.Name)
	if err != nil {
		e := mvm.Errorf(mvm.ErrUnavailable, "the program %s is not installed", c.Name)
		if p := packages[c.Name]; p != "" {
			return Result{}, e.WithHint("apt-get install %s", p)
		}
		return Result{}, e
	}
	cmd := exec.CommandContext(ctx, path, c.Args...)
	var out bytes.Buffer
	tail := &tailWriter{max: 4096}
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Dir, c.Env, c.Stdin, c.Stdout, tail
	if c.Stdout == nil {
		cmd.Stdout = &out
	}
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(c.Stderr, tail)
	}
	attr := syscall.SysProcAttr{}
	if c.Attr != nil {
		attr = *c.Attr
	}
	attr.Setpgid = true // so that cancelling reaches what the tool started
	cmd.SysProcAttr = &attr
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		if ctx.Err() != nil {
			return Result{}, fmt.Errorf("%s was not started: %w", c.Name, ctx.Err())
		}
		return Result{}, mvm.Errorf(mvm.ErrUnavailable, "cannot start %s: %w", c.Name, err)
	}
	h.started.Add(1)
	err = cmd.Wait()
	if ctx.Err() != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // whatever of its group is still there
		return Result{}, fmt.Errorf("%s was interrupted: %w", c.Name, ctx.Err())
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return Result{Stderr: tail.buf}, &ExitError{Name: c.Name, Args: c.Args, Code: exit.ExitCode(), Stderr: string(tail.buf)}
	case err != nil:
		return Result{}, mvm.Errorf(mvm.ErrUnavailable, "running %s: %w", c.Name, err)
	}
	return Result{Stdout: out.Bytes(), Stderr: tail.buf}, nil
}

// Look finds a tool, also in the directories that the PATH of an ordinary user lacks.
func Look(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && !strings.Contains(name, "/") {
		for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
			if path, err := exec.LookPath(dir + name); err == nil {
				return path, nil
			}
		}
	}
	return path, err
}

// tailWriter keeps the last max bytes written.
type tailWriter struct {
	buf []byte
	max int
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - t.max; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}
