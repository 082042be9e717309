// Package qemu is the driver for QEMU: it renders the command line, speaks QMP on
// a unix socket, and finds a running VM again. It knows no store and no network:
// taps and disks are there already, and the process belongs to a supervisor.
package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Options are what a driver is made of.
type Options struct {
	Launcher supervisor.Launcher // starts VMMs
	CacheDir string              // keeps the binary's version between processes; "" keeps it in memory
	Runner   run.Runner          // asks the binary for its version
	Binary   string              // of QEMU, for Probe; "" looks in PATH

	CheckKVM func() host.KVM // nil is host.CheckKVM
	TSCKHz   func() uint64   // the host's time stamp counter, 0 for unknown; nil measures it
	Seccomp  func() bool     // whether the host's kernel has seccomp filters; nil looks

	HostCPU  func() string // the host's CPU, for what KVM passes on of it; nil is host.CPU
	FreeHuge func() int    // free huge pages of 2 MiB, -1 for unknown; nil looks

	// Firmware returns the path of qboot for a QEMU binary, or ""; nil looks.
	Firmware func(binary string) string
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
	if o.TSCKHz == nil {
		o.TSCKHz = hostTSC
	}
	if o.Seccomp == nil {
		o.Seccomp = hostSeccomp
	}
	if o.HostCPU == nil {
		o.HostCPU = host.CPU
	}
	if o.FreeHuge == nil {
		o.FreeHuge = freeHugePages
	}
	if o.Firmware == nil {
		o.Firmware = findQboot
	}
	return &Driver{opts: o}
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "qemu" }

// handleVersion is the version of the handles that this driver makes.
const handleVersion = 1

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
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := d.plan(ctx, l)
	if err != nil {
		return nil, err
	}
	defer p.close()
	r.Argv = d.argv(l, p.layout)
	if listens(ctx, r.APISocket) {
		return nil, mvm.Errorf(mvm.ErrConflict, "it runs already").WithHint("stop it first with 'mvm vm stop'")
	}
	if err := removeSockets(l); err != nil { // QEMU refuses to listen where a file is
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot clear the VM's directory: %w", err)
	}
	m, err := d.spawn(ctx, l, r, p.facts)
	if err != nil {
		return nil, errors.Join(err, removeSockets(l))
	}
	if needsSetUp(l) {
		err = m.setUp(ctx, l, p)
	} else {
		err = m.untilRunning(ctx)
	}
	if err != nil {
		return nil, errors.Join(m.undo(err), removeSockets(l))
	}
	return m, nil
}

// spawn starts QEMU under its supervisor.
func (d *Driver) spawn(ctx context.Context, l vmm.Launch, r vmm.Rendered, f facts) (*machine, error) {
	s := supervisor.Spec{
		ID: l.ID, Dir: l.Dir, Argv: r.Argv, Env: l.Env,
		Log: filepath.Join(l.Dir, l.Files.Log), Console: filepath.Join(l.Dir, l.Files.Console),
		ConsoleSocket: inDir(l, l.Files.ConsoleSocket), PIDFile: inDir(l, l.Files.PID),
	}
	if l.Agent {
		s.MuxDevice, s.MuxSocket = filepath.Join(l.Dir, agentDevice), r.Guest.Path
	}
	e := extra{Log: l.Files.Log, ConsoleSocket: l.Files.ConsoleSocket, Facts: &f}
	if len(l.Disks) > 0 {
		e.Disk = l.Disks[0].Path
	}
	more, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	started, err := supervisor.Spawn(ctx, d.opts.Launcher, s)
	if err != nil {
		return nil, err
	}
	return &machine{handle: vmm.Handle{
		Version: handleVersion, Driver: d.Name(), ID: l.ID, Dir: l.Dir,
		VMM: started.VMM, Supervisor: started.Supervisor,
		APISocket: r.APISocket, Guest: r.Guest, Accel: l.Accel, Extra: more,
	}}, nil
}

func inDir(l vmm.Launch, name string) string {
	if name == "" {
		return ""
	}
	return filepath.Join(l.Dir, name)
}

// undo ends a VMM that did not come up, whatever became of the caller's
// context, and keeps the first error.
func (m *machine) undo(first error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.Kill(ctx, 0); err != nil {
		return fmt.Errorf("%w (and it could not be ended: %w)", first, err)
	}
	return first
}

// removeSockets removes the sockets of a VM that does not run; files that are no
// sockets are not ours and stay.
func removeSockets(l vmm.Launch) error {
	var errs []error
	for _, name := range []string{l.Files.API, l.Files.ConsoleSocket, l.Files.Agent, agentDevice} {
		if name == "" {
			continue
		}
		path := filepath.Join(l.Dir, name)
		switch fi, err := os.Lstat(path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		case fi.Mode().Type() == fs.ModeSocket:
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
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
	return &machine{handle: h}, nil
}

func gone(h vmm.Handle) error {
	return mvm.Errorf(mvm.ErrNotFound, "%s: %w", h.ID, vmm.ErrGone).WithHint("'mvm vm start' starts it again")
}
