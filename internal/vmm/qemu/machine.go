package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

// machine implements vmm.Machine and vmm.Pauser. It holds nothing: QMP serves
// one client at a time, so each request connects anew and leaves at once.
type machine struct{ handle vmm.Handle }

var _ vmm.Pauser = (*machine)(nil)

// Handle implements vmm.Machine.
func (m *machine) Handle() vmm.Handle { return m.handle }

// Close implements vmm.Machine.
func (m *machine) Close() error { return nil }

// poll is the pause between looks at a socket that is not there yet.
const poll = 3 * time.Millisecond

// untilRunning waits until QEMU says that the vCPUs run. It gives up when the
// process ends, or with ctx.
func (m *machine) untilRunning(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if exit, err := m.Wait(ctx); err == nil {
			cancel(mvm.Errorf(mvm.ErrUnavailable, "QEMU ended with status %d: %s", exit.Code, exit.Reason).WithHint("see %s", filepath.Join(m.handle.Dir, "*.log")))
		}
	}()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		status, err := m.status(ctx)
		var refused *QMPError
		switch {
		case err == nil && slices.Contains(begun, status):
			return nil
		case err == nil && slices.Contains(broken, status):
			return mvm.Errorf(mvm.ErrUnavailable, "QEMU says %q", status).WithHint("see %s", filepath.Join(m.handle.Dir, "*.log"))
		case errors.As(err, &refused):
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

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
	limited, cancel := context.WithTimeout(ctx, qmpLimit)
	defer cancel()
	err := m.request(limited, command, args, result)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return mvm.Errorf(mvm.ErrUnavailable, "QEMU has not answered %s within %v", command, qmpLimit).WithHint("stop the VM with --force and start it again")
	}
	return err
}

func (m *machine) request(ctx context.Context, command string, args, result any) error {
	q, err := DialQMP(ctx, m.handle.APISocket)
	if err != nil {
		return err
	}
	defer func() { _ = q.Close() }()
	return q.Execute(ctx, command, args, result)
}

// State implements vmm.Machine.
func (m *machine) State(ctx context.Context) (vmm.State, error) {
	if !proc.Alive(m.handle.VMM) {
		return vmm.StateExited, nil
	}
	status, err := m.status(ctx)
	if err != nil {
		if !proc.Alive(m.handle.VMM) {
			return vmm.StateExited, nil // it ended meanwhile
		}
		return "", err
	}
	switch status {
	case "running", "shutdown": // about to end
		return vmm.StateRunning, nil
	case "paused", "suspended", "io-error": // a disk error stops the vCPUs until they are continued
		return vmm.StatePaused, nil
	}
	return "", mvm.Errorf(mvm.ErrBroken, "QEMU says that it is %q", status).
		WithHint("stop the VM with --force and start it again")
}

// Wait implements vmm.Machine.
func (m *machine) Wait(ctx context.Context) (vmm.Exit, error) {
	exit, err := vmm.WaitExit(ctx, m.handle)
	if err == nil && exit.Code == 0 && exit.Reason == "" {
		exit.Reason = "guest powered off"
		if m.terminated() {
			exit.Reason = "QEMU was ended by a signal"
		}
	}
	return exit, err
}

// terminated reports whether QEMU was asked to end: it then ends in order, with
// status 0, after a line in its log (qemu_system_killed in softmmu/runstate.c).
func (m *machine) terminated() bool {
	var e extra
	if json.Unmarshal(m.handle.Extra, &e) != nil || e.Log == "" {
		return false
	}
	data, err := os.ReadFile(filepath.Join(m.handle.Dir, filepath.Base(e.Log)))
	return err == nil && bytes.Contains(data, []byte("terminating on signal"))
}

// extra is what the driver adds to a handle.
type extra struct {
	Log string `json:"log"` // name of QEMU's log in the VM's directory
}

// Shutdown implements vmm.Machine: it presses the ACPI power button.
func (m *machine) Shutdown(ctx context.Context) error {
	return m.gone(m.execute(ctx, "system_powerdown", nil, nil))
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
	for _, path := range []string{m.handle.APISocket, filepath.Join(m.handle.Dir, agentDevice)} {
		removeDead(ctx, path)
	}
	return nil
}

// removeDead removes a socket that nobody listens on. One that answers is of the
// next run of the VM, which began meanwhile.
func removeDead(ctx context.Context, path string) {
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != fs.ModeSocket {
		return // connecting to another file is refused too
	}
	conn, err := fsx.DialUnix(ctx, path)
	if err == nil {
		_ = conn.Close()
		return
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(path)
	}
}

// supervisorLimit is how long a supervisor has to write down its VMM's end.
const supervisorLimit = 3 * time.Second

// Pause implements vmm.Pauser. A paused VM stays paused.
func (m *machine) Pause(ctx context.Context) error {
	return m.gone(m.execute(ctx, "stop", nil, nil))
}

// Resume implements vmm.Pauser. A running VM is left alone.
func (m *machine) Resume(ctx context.Context) error {
	return m.gone(m.execute(ctx, "cont", nil, nil))
}

// gone replaces the error of a request by ErrGone where the VMM has ended.
func (m *machine) gone(err error) error {
	if err != nil && !proc.Alive(m.handle.VMM) {
		return gone(m.handle)
	}
	return err
}

// dialLimit bounds the wait for the guest's answer: a guest that is still booting
// answers nothing.
const dialLimit = 5 * time.Second

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
		_, err = mux.ReadOK(conn)
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
