package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest/mux"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// machine implements vmm.Machine and the optional abilities that QEMU has. It
// holds nothing: QMP serves one client at a time, so each request connects anew and
// leaves at once.
type machine struct{ handle vmm.Handle }

var (
	_ vmm.Pauser         = (*machine)(nil)
	_ vmm.Snapshotter    = (*machine)(nil)
	_ vmm.DiskHotplugger = (*machine)(nil)
	_ vmm.Ballooner      = (*machine)(nil)
	_ vmm.RateLimiter    = (*machine)(nil)
)

// Handle implements vmm.Machine.
func (m *machine) Handle() vmm.Handle { return m.handle }

// Close implements vmm.Machine.
func (m *machine) Close() error { return nil }

// poll is the pause between looks at a socket that is not there yet.
const poll = 3 * time.Millisecond

// untilRunning waits until QEMU says that the vCPUs run. It gives up when the
// process ends, or with ctx.
func (m *machine) untilRunning(ctx context.Context) error {
	ctx, cancel := m.whileAlive(ctx)
	defer cancel()
	_, err := m.until(ctx, func(status string) bool { return slices.Contains(begun, status) })
	if err != nil && errors.Is(context.Cause(ctx), errEnded) {
		return nil
	}
	return err
}

// whileAlive returns a context that ends with QEMU, and with why as its cause.
func (m *machine) whileAlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		switch exit, err := m.Wait(ctx); {
		case err != nil:
		case exit.Code == 0:
			cancel(errEnded)
		default:
			cancel(mvm.Errorf(mvm.ErrUnavailable, "QEMU ended with status %d: %s", exit.Code, exit.Reason).WithHint("see %s", filepath.Join(m.handle.Dir, "*.log")))
		}
	}()
	return ctx, func() { cancel(nil) }
}

// until asks for the RunState until it is one that is wanted. QEMU need not answer
// yet. What ends ctx is the error.
func (m *machine) until(ctx context.Context, wanted func(status string) bool) (string, error) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		status, err := m.status(ctx)
		var refused *QMPError
		switch {
		case err == nil && wanted(status):
			return status, nil
		case err == nil && slices.Contains(broken, status):
			return "", mvm.Errorf(mvm.ErrUnavailable, "QEMU says %q", status).WithHint("see %s", filepath.Join(m.handle.Dir, "*.log"))
		case errors.As(err, &refused):
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// errEnded says that QEMU ended in order before it was asked: the guest powered
// off as soon as it ran.
var errEnded = errors.New("the guest has powered off")

// RunStates of QMP (qapi/run-state.json). A guest that powered off at once, or
// that wrote to a full disk, has begun before that.
var (
	begun  = []string{"running", "shutdown", "io-error"}
	broken = []string{"internal-error", "guest-panicked"}
)

// status asks for the RunState (qapi/run-state.json).
func (m *machine) status(ctx context.Context) (string, error) {
	var info struct {
		Status string `json:"status"`
	}
	err := m.execute(ctx, "query-status", nil, &info)
	return info.Status, err
}

// qmpLimit bounds one request, the wait for other clients included. What we ask
// takes milliseconds.
const qmpLimit = 15 * time.Second

// execute runs one command of QMP on a connection of its own.
func (m *machine) execute(ctx context.Context, command string, args, result any) error {
	return m.session(ctx, command, func(ctx context.Context, q *QMP) error {
		return q.Execute(ctx, command, args, result)
	})
}

// session runs some commands on one connection, on which others wait meanwhile. what
// names them.
func (m *machine) session(ctx context.Context, what string, f func(context.Context, *QMP) error) error {
	limited, cancel := context.WithTimeout(ctx, qmpLimit)
	defer cancel()
	go m.reap(limited)
	err := m.dial(limited, f)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return mvm.Errorf(mvm.ErrUnavailable, "QEMU has not answered %s within %v", what, qmpLimit).WithHint("stop the VM with --force and start it again")
	}
	return err
}

func (m *machine) dial(ctx context.Context, f func(context.Context, *QMP) error) error {
	q, err := DialQMP(ctx, m.handle.APISocket)
	if err != nil {
		return err
	}
	defer func() { _ = q.Close() }()
	return f(ctx, q)
}

// State implements vmm.Machine.
func (m *machine) State(ctx context.Context) (vmm.State, error) {
	if !proc.Alive(m.handle.VMM) {
		return vmm.StateExited, nil
	}
	status, err := m.status(ctx)
	if err != nil {
		if err = m.gone(ctx, err); errors.Is(err, vmm.ErrGone) {
			return vmm.StateExited, nil // it ended meanwhile
		}
		return "", err
	}
	switch status {
	case "running", "shutdown": // about to end
		return vmm.StateRunning, nil
	case "paused", "suspended", "io-error", // a disk error stops the vCPUs until they are continued
		"finish-migrate", "postmigrate", // being written, and written
		"prelaunch", "inmigrate": // being set up, or loaded
		return vmm.StatePaused, nil
	}
	return "", mvm.Errorf(mvm.ErrBroken, "QEMU says that it is %q", status).
		WithHint("stop the VM with --force and start it again")
}

// Wait implements vmm.Machine.
func (m *machine) Wait(ctx context.Context) (vmm.Exit, error) {
	exit, err := vmm.WaitExit(ctx, m.handle)
	if err == nil {
		exit = (*Driver)(nil).Explain(m.handle, exit)
	}
	return exit, err
}

// terminated reports whether QEMU was asked to end: it then ends in order, with
// status 0, after a line in its log (qemu_system_killed in softmmu/runstate.c).
func (m *machine) terminated() bool {
	name := m.extra().Log
	if name == "" {
		return false
	}
	data, err := os.ReadFile(filepath.Join(m.handle.Dir, filepath.Base(name)))
	return err == nil && bytes.Contains(data, []byte("terminating on signal"))
}

// Shutdown implements vmm.Machine: it presses the ACPI power button.
func (m *machine) Shutdown(ctx context.Context) error {
	return m.gone(ctx, m.execute(ctx, "system_powerdown", nil, nil))
}

// Kill implements vmm.Machine. On SIGTERM QEMU ends in order, and with it the
// guest, as if its plug had been pulled: but what QEMU has buffered is written.
// The supervisor ends by itself when its VMM has; one that hangs is ended too.
func (m *machine) Kill(ctx context.Context, grace time.Duration) error {
	if err := proc.Kill(ctx, m.handle.VMM, grace); err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, supervisorLimit)
	defer cancel()
	if err := proc.WaitExit(soon, m.handle.Supervisor); err != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := proc.Kill(ctx, m.handle.Supervisor, 0); err != nil {
			return err
		}
	}
	for _, path := range m.sockets() {
		removeDead(ctx, path)
	}
	return nil
}

// sockets are those of the VMM, which leaves them when it is killed, and of the
// supervisor, should that have been killed.
func (m *machine) sockets() []string {
	paths := []string{m.handle.APISocket, filepath.Join(m.handle.Dir, agentDevice)}
	if m.handle.Guest.Path != "" {
		paths = append(paths, m.handle.Guest.Path)
	}
	if name := m.extra().ConsoleSocket; name != "" {
		paths = append(paths, filepath.Join(m.handle.Dir, filepath.Base(name)))
	}
	return paths
}

// lingerLimit is how long threads of a killed QEMU may keep its sockets open after
// its first thread is gone.
const lingerLimit = 3 * time.Second

// removeDead removes a socket once nobody listens on it. One that goes on
// answering is of the next run of the VM, which began meanwhile.
func removeDead(ctx context.Context, path string) {
	ctx, cancel := context.WithTimeout(ctx, lingerLimit)
	defer cancel()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		fi, err := os.Lstat(path)
		if err != nil || fi.Mode().Type() != fs.ModeSocket {
			return
		}
		if !listens(ctx, path) {
			_ = os.Remove(path)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// listens reports whether a process listens on a socket. Only a refusal says that
// none does; a full queue, for one, says that there is.
func listens(ctx context.Context, path string) bool {
	conn, err := fsx.DialUnix(ctx, path)
	if err == nil {
		_ = conn.Close()
	}
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist)
}

// supervisorLimit is how long a supervisor has to write down its VMM's end.
const supervisorLimit = 5 * time.Second

// Pause implements vmm.Pauser. A paused VM stays paused.
func (m *machine) Pause(ctx context.Context) error {
	return m.gone(ctx, m.execute(ctx, "stop", nil, nil))
}

// Resume implements vmm.Pauser. A running VM is left alone. A snapshot that is still
// being written, by a command that was killed say, is given up first: in the end of
// it QEMU would pause the VM again.
func (m *machine) Resume(ctx context.Context) error {
	return m.gone(ctx, m.session(ctx, "cont", func(ctx context.Context, q *QMP) error {
		if err := endMigration(ctx, q); err != nil {
			return err
		}
		return q.Execute(ctx, "cont", nil, nil)
	}))
}

// endLimit is how long QEMU may take from closing its monitor to its end.
const endLimit = 3 * time.Second

// gone replaces the error of a request by ErrGone where the VMM has ended, or is
// just about to.
func (m *machine) gone(ctx context.Context, err error) error {
	var refused *QMPError
	if err == nil || errors.As(err, &refused) {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	if proc.WaitExit(soon, m.handle.VMM) == nil {
		return gone(m.handle)
	}
	return err
}

// dialLimit bounds the wait for the guest's answer. One that has not begun to answer is
// known to the supervisor, which says so at once; one with a hundred to answer takes its
// time. It is less than the supervisor's own limit.
const dialLimit = 25 * time.Second

// DialGuest implements vmm.Machine: it asks the supervisor for a stream.
func (m *machine) DialGuest(ctx context.Context, port uint32) (net.Conn, error) {
	if m.handle.Guest.Kind == "" {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "the VM was started without a channel for the agent").WithHint("use ssh")
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	conn, err := fsx.DialUnix(ctx, m.handle.Guest.Path)
	if err != nil {
		return nil, noAgent(port, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err = mux.WriteConnect(conn, port); err == nil {
		if _, err = mux.ReadOK(conn); errors.Is(err, io.EOF) {
			err = errors.New("nothing listens there")
		}
	}
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is set on the connection, or just about to be
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		_ = conn.Close()
		return nil, noAgent(port, err)
	}
	return conn, nil
}

func noAgent(port uint32, err error) error {
	return mvm.Errorf(mvm.ErrUnavailable, "the guest does not answer on port %d: %w", port, err).
		WithHint("wait until the guest is up; 'mvm logs' shows its console")
}
