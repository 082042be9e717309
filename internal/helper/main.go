package helper

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// lockFile is in a directory that only root writes to, and gone after a reboot.
const lockFile = "/run/mvm-helper.lock"

// timeLimit bounds one request: what the kernel does takes milliseconds.
const timeLimit = 30 * time.Second

// callerVariable is where sudo tells who called (sudo(8)); it sets it in any case.
const callerVariable = "SUDO_UID"

// Main is the helper's main function. Once it has begun it is not interrupted, so
// that Ctrl-C leaves nothing half-made. It returns the exit status.
func Main(host Host, taken PortTaken) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGQUIT, syscall.SIGTSTP)
	unix.Umask(0o077)
	uid, err := caller()
	os.Clearenv()
	if err == nil {
		err = checkSelf()
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "mvm-helper: "+err.Error())
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()
	s := &Server{Host: host, UID: uid, Taken: taken, Lock: lockFile}
	return s.Serve(ctx, deadline{ctx, os.Stdin}, os.Stdout)
}

// caller is the user who asks.
func caller() (int, error) {
	if len(os.Args) != 1 {
		return 0, mvm.Errorf(mvm.ErrInvalid, "it takes no arguments")
	}
	if os.Geteuid() != 0 {
		return 0, mvm.Errorf(mvm.ErrPrivilege, "it does not run as root").WithHint("it is mvm that runs it, by sudo")
	}
	text := os.Getenv(callerVariable)
	uid, err := strconv.Atoi(text)
	if err != nil || !network.IsMember(uid) || strconv.Itoa(uid) != text {
		return 0, mvm.Errorf(mvm.ErrPrivilege, "%s=%s names no ordinary user", callerVariable, mvm.Quote(clip(text)))
	}
	return uid, nil
}

// checkSelf refuses to work where others could have replaced this program.
func checkSelf() error {
	self, err := os.Executable()
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot tell where this program is: %w", err)
	}
	return CheckTrusted(self)
}

// deadline stops reading when ctx ends: a caller who sends nothing keeps no process
// of root's for ever.
type deadline struct {
	ctx context.Context
	in  io.Reader
}

func (d deadline) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	own := make([]byte, len(p)) // p is the caller's again after a timeout
	go func() {
		n, err := d.in.Read(own)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return copy(p, own[:r.n]), r.err
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
}
