package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Options are what a driver is made of.
type Options struct {
	Binary string     // of Firecracker, for Probe; "" looks in PATH
	Cache  string     // file that keeps the binary's version between processes; "" keeps it in memory
	Runner run.Runner // asks a binary for its version

	Launcher supervisor.Launcher // the program that becomes a VM's supervisor
	CheckKVM func() host.KVM     // nil is host.CheckKVM
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
	l, err := resolveJail(l)
	if err != nil {
		return nil, err
	}
	r, err := d.Render(l)
	if err != nil {
		return nil, err
	}
	if err := present(l); err != nil {
		return nil, err
	}
	if err := Unjail(ctx, l.Dir, l.ID); err != nil { // of a run that a crash ended
		return nil, err
	}
	if err := removeStale(l); err != nil {
		return nil, err
	}
	for _, disk := range l.Disks {
		if err := linkDisk(l.Dir, disk); err != nil {
			return nil, err
		}
	}
	if err := fsx.WriteFile(filepath.Join(l.Dir, l.Files.Config), r.Config, 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration: %w", err)
	}
	e := enjailed{launch: l, rendered: r}
	if l.Jail != nil {
		if e, err = d.enjail(ctx, l); err != nil {
			return nil, err
		}
	}
	m := d.machine(vmm.Handle{
		Version: handleVersion, Driver: d.Name(), ID: l.ID, Dir: l.Dir,
		APISocket: r.APISocket, Guest: r.Guest, Accel: "kvm", Jail: e.jailed,
	})
	started, err := supervisor.Spawn(ctx, d.opts.Launcher, d.spec(e.launch, e.rendered, e.jail))
	m.handle.VMM, m.handle.Supervisor = started.VMM, started.Supervisor
	if err == nil {
		if err = m.untilRunning(ctx); err != nil {
			err = m.undo(err)
		}
	}
	if err != nil {
		removeNames(l) // the configuration and the logs stay for inspection
		return nil, errors.Join(err, Unjail(context.WithoutCancel(ctx), l.Dir, l.ID))
	}
	return m, nil
}

// present looks for the launch's files, because Firecracker does not name the
// one that it misses.
func present(l vmm.Launch) error {
	files := []struct{ path, hint string }{{l.Binary, "mvm binary pull firecracker"}, {l.Kernel, "mvm kernel pull"}, {l.Initrd, "stop the VM and start it again"}}
	for _, disk := range l.Disks {
		files = append(files, struct{ path, hint string }{disk.Path, "remove the VM and create it again"})
	}
	for _, f := range files {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("%s", f.hint)
		}
	}
	return nil
}

// stderrFile gets what Firecracker says when it fails. It is not the log, which
// Firecracker opens by itself and writes without O_APPEND.
const stderrFile = "firecracker.stderr"

func (d *Driver) spec(l vmm.Launch, r vmm.Rendered, jail *supervisor.Jail) supervisor.Spec {
	in := func(name string) string {
		if name == "" {
			return ""
		}
		return filepath.Join(l.Dir, name)
	}
	return supervisor.Spec{
		ID: l.ID, Dir: l.Dir, Argv: r.Argv, Env: l.Env, Log: in(stderrFile),
		Console: in(l.Files.Console), ConsoleSocket: in(l.Files.ConsoleSocket), PIDFile: in(l.Files.PID), Jail: jail,
	}
}

// undo ends a VMM that did not come up and its supervisor, whatever became of
// the caller's context, and keeps the first error.
func (m *machine) undo(first error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.Kill(ctx, 0); err != nil {
		return fmt.Errorf("%w (and it could not be ended: %w)", first, err)
	}
	return first
}

// removeNames removes what only a VM that runs has in its directory.
func removeNames(l vmm.Launch) {
	for _, disk := range l.Disks {
		_ = unlinkDisk(l.Dir, disk)
	}
	for _, name := range []string{l.Files.API, l.Files.Agent} {
		if name != "" {
			_ = os.Remove(filepath.Join(l.Dir, name))
		}
	}
}

const (
	// poll is the pause between looks at a VMM that is coming up.
	poll = 5 * time.Millisecond
	// patience is how long the vCPUs' threads are waited for before the API is
	// asked all the same: a Firecracker whose threads are called otherwise.
	patience = 10 * time.Second
)

// errRan is the cause of no further waiting: the guest ran and ended already.
var errRan = errors.New("the guest has ended")

// untilRunning waits until the API says that the vCPUs run. It gives up when
// the process ends, or with ctx. A process that ended with status 0 did run.
//
// The API is not asked before the vCPUs' threads are there: a Firecracker that
// refuses its configuration while a request waits for an answer aborts in its
// API thread ("VMM disconnected"), and what was wrong is never said.
func (m *machine) untilRunning(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		switch exit, err := m.Wait(ctx); {
		case err != nil:
		case exit.Code == 0:
			cancel(errRan)
		default:
			cancel(ended(exit))
		}
	}()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	late := time.Now().Add(patience)
	for {
		if hasVCPUs(m.handle.VMM.PID) || time.Now().After(late) {
			info, err := m.api.Info(ctx)
			var refused *APIError
			switch {
			case err == nil && info.State == "Running":
				return nil
			case errors.As(err, &refused):
				return err
			}
		}
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, errRan) {
				return err
			}
			return nil
		case <-ticker.C:
		}
	}
}

// ended is the error for a VMM that ended while it was to come up.
func ended(exit vmm.Exit) error {
	return mvm.Errorf(mvm.ErrUnavailable, "firecracker ended with status %d: %s", exit.Code, exit.Reason).
		WithHint("'mvm inspect' names its configuration and log; 'mvm host status' tells whether KVM works")
}

// hasVCPUs tells whether the process has a thread named "fc_vcpu N", as
// Firecracker names them once the VM is built.
func hasVCPUs(pid int) bool {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", pid))
	for _, name := range names {
		if comm, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(comm), "fc_vcpu") {
			return true
		}
	}
	return false
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
	return mvm.Errorf(mvm.ErrNotFound, "the VM %s: %w", h.ID, vmm.ErrGone).
		WithHint("mvm vm start starts it again")
}
