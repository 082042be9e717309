package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Options are what a driver is made of.
type Options struct {
	Binary string     // of Firecracker, for Probe; "" looks in PATH
	Cache  string     // file that keeps the binary's version between processes; "" keeps it in memory
	Runner run.Runner // asks a binary for its version
	Owner  Owner      // starts VMMs

	CheckKVM func() host.KVM // nil is host.CheckKVM
}

// Owner starts a VMM under a process that outlives this one, and tells of its
// end. Package supervisor is one.
type Owner interface {
	// Spawn starts the VMM and returns when its process runs. On error nothing
	// is left.
	Spawn(ctx context.Context, s Spawn) (vmmProc, supervisor proc.Identity, err error)

	// Wait returns when the VMM has ended. Reason holds the last line that it
	// wrote to stderr, or "".
	Wait(ctx context.Context, h vmm.Handle) (vmm.Exit, error)
}

// Spawn is a VMM to be started. The serial console is on its stdin and stdout.
type Spawn struct {
	ID            string
	Argv          []string
	Dir           string   // working directory, and where the files go
	Env           []string // nil for a minimal one
	Console       string   // file name of the console's log
	ConsoleSocket string   // file name of the socket where viewers attach
	PID           string   // file name of the pid file; "" for none
}

// Driver implements vmm.Driver.
type Driver struct {
	opts Options

	mu    sync.Mutex // guards known
	known known
}

var _ vmm.Driver = (*Driver)(nil)

// New makes a driver.
func New(o Options) *Driver {
	if o.CheckKVM == nil {
		o.CheckKVM = host.CheckKVM
	}
	return &Driver{opts: o}
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "firecracker" }

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, l vmm.Launch) (vmm.Machine, error) {
	m, err := d.start(ctx, l)
	if err != nil {
		return nil, mvm.Wrap(err, "start", l.Name)
	}
	return m, nil
}

func (d *Driver) start(ctx context.Context, l vmm.Launch) (*machine, error) {
	r, err := d.Render(l)
	if err != nil {
		return nil, err
	}
	if err := removeStale(l); err != nil {
		return nil, err
	}
	if err := fsx.WriteFile(filepath.Join(l.Dir, l.Files.Config), r.Config, 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration: %w", err)
	}
	m := d.machine(vmm.Handle{
		Version: handleVersion, Driver: d.Name(), ID: l.ID, Dir: l.Dir,
		APISocket: r.APISocket, Guest: r.Guest, Accel: "kvm",
	})
	m.handle.VMM, m.handle.Supervisor, err = d.opts.Owner.Spawn(ctx, Spawn{
		ID: l.ID, Argv: r.Argv, Dir: l.Dir, Env: l.Env,
		Console: l.Files.Console, ConsoleSocket: l.Files.ConsoleSocket, PID: l.Files.PID,
	})
	if err == nil {
		if err = m.untilRunning(ctx); err != nil {
			err = m.undo(err)
		}
	}
	if err != nil {
		removeSockets(l) // the configuration and the logs stay for inspection
		return nil, err
	}
	return m, nil
}

// undo ends a VMM that did not come up, whatever became of the caller's
// context, and keeps the first error.
func (m *machine) undo(first error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.Kill(ctx, 0); err != nil {
		return fmt.Errorf("%w (and it could not be ended: %v)", first, err)
	}
	return first
}

func removeSockets(l vmm.Launch) {
	for _, name := range []string{l.Files.API, l.Files.Agent} {
		if name != "" {
			_ = os.Remove(filepath.Join(l.Dir, name))
		}
	}
}

// poll is the pause between looks at an API that is not there yet. Firecracker
// needs 10 ms to open its socket, and then answers as soon as the VM is built.
const poll = 5 * time.Millisecond

// untilRunning waits until the API says that the vCPUs run. It gives up when
// the process ends, or with ctx.
func (m *machine) untilRunning(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if exit, err := m.owner.Wait(ctx, m.handle); err == nil {
			cancel(mvm.Errorf(mvm.ErrUnavailable, "firecracker ended with status %d: %s", exit.Code, reason(exit.Code, exit.Reason)).
				WithHint("see %s", m.path("")+"*.log"))
		}
	}()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		info, err := m.api.Info(ctx)
		var refused *APIError
		switch {
		case err == nil && info.State == "Running":
			return nil
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

// Attach implements vmm.Driver.
func (d *Driver) Attach(_ context.Context, h vmm.Handle) (vmm.Machine, error) {
	switch {
	case h.Driver != d.Name():
		return nil, mvm.Errorf(mvm.ErrInvalid, "the handle is of the driver %q", h.Driver).WithHint("stop the VM and start it again")
	case h.Version != handleVersion:
		return nil, mvm.Errorf(mvm.ErrUnsupported, "the handle has version %d", h.Version).
			WithHint("another version of mvm started the VM: stop it with that one")
	case !proc.Alive(h.VMM):
		return nil, gone(h)
	}
	return d.machine(h), nil
}

const handleVersion = 1

func gone(h vmm.Handle) error {
	return mvm.Errorf(mvm.ErrUnavailable, "the VMM of %s is gone: %w", h.ID, proc.ErrGone).
		WithHint("mvm vm start starts it again")
}
