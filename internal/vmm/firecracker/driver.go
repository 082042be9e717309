package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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
	if _, err := d.Render(l); err != nil {
		return nil, err
	}
	if err := present(l); err != nil {
		return nil, err
	}
	l = withoutAsync(l)
	// Only x86 has a kvmclock to be set.
	clock := l.Restore != nil && l.Restore.Resume && runtime.GOARCH == "amd64"
	m, err := d.launch(ctx, l, clock)
	if clock && errors.Is(err, errNoClock) {
		return d.launch(ctx, l, false)
	}
	return m, err
}

// launch starts a VMM, which boots what it was configured for, or loads a snapshot
// and, if it is to, tells the guest the time.
func (d *Driver) launch(ctx context.Context, l vmm.Launch, clock bool) (*machine, error) {
	if err := errors.Join(supervisor.EndServers(ctx, l.ID), Unjail(ctx, l.Dir, l.ID)); err != nil { // of a run that a crash ended
		return nil, err
	}
	r, err := d.Render(l)
	if err != nil {
		return nil, err
	}
	more, err := json.Marshal(extraOf(l))
	if err != nil {
		return nil, err
	}
	if err := prepare(l, r); err != nil {
		removeNames(l)
		return nil, err
	}
	e := enjailed{launch: l, rendered: r}
	if l.Jail != nil {
		if e, err = d.enjail(ctx, l); err != nil {
			removeNames(l)
			return nil, err
		}
	}
	spec, err := d.spec(e.launch, e.rendered, e.jail)
	if err != nil {
		removeNames(l)
		return nil, errors.Join(err, Unjail(context.WithoutCancel(ctx), l.Dir, l.ID))
	}
	m := d.machine(vmm.Handle{
		Version: handleVersion, Driver: d.Name(), ID: l.ID, Dir: l.Dir,
		APISocket: r.APISocket, Guest: r.Guest, Accel: "kvm", Jail: e.jailed, Extra: more,
	})
	started, err := supervisor.Spawn(ctx, d.opts.Launcher, spec)
	m.handle.VMM, m.handle.Supervisor = started.VMM, started.Supervisor
	if err == nil {
		if err = m.comeUp(ctx, l, clock); err != nil {
			err = m.undo(err)
		}
	}
	_ = os.Remove(filepath.Join(rootOf(l), metadataFile)) // it was read, and may hold secrets
	if err != nil {
		removeNames(l) // the configuration and the logs stay for inspection
		return nil, errors.Join(err, Unjail(context.WithoutCancel(ctx), l.Dir, l.ID))
	}
	return m, nil
}

// comeUp waits until the guest runs, or has been loaded.
func (m *machine) comeUp(ctx context.Context, l vmm.Launch, clock bool) error {
	if l.Restore == nil {
		return m.untilRunning(ctx)
	}
	request := loadOf(seen(l))
	request.ClockRealtime = clock
	return m.load(ctx, l, request)
}

// prepare puts into the VM's directory what Firecracker looks for there.
func prepare(l vmm.Launch, r vmm.Rendered) error {
	if err := removeStale(l); err != nil {
		return err
	}
	for _, disk := range l.Disks {
		if served(disk) {
			continue
		}
		if err := linkDisk(l.Dir, disk); err != nil {
			return err
		}
	}
	if l.Metadata != nil && l.Jail == nil {
		data, err := metadataOf(l.Metadata)
		if err == nil {
			err = fsx.WriteFile(filepath.Join(l.Dir, metadataFile), data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("write the metadata: %w", err)
		}
	}
	if err := fsx.WriteFile(filepath.Join(l.Dir, l.Files.Config), r.Config, 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// stderrFile gets what Firecracker says when it fails. It is not the log, which
// Firecracker opens by itself and writes without O_APPEND.
const stderrFile = "firecracker.stderr"

func (d *Driver) spec(l vmm.Launch, r vmm.Rendered, jail *supervisor.Jail) (supervisor.Spec, error) {
	in := func(name string) string {
		if name == "" {
			return ""
		}
		return filepath.Join(l.Dir, name)
	}
	var pipes []supervisor.Pipe
	if l.Logging {
		pipes = append(pipes, supervisor.Pipe{FIFO: in(l.Files.Log + pipeSuffix), File: in(l.Files.Log)})
	}
	if l.Metrics {
		pipes = append(pipes, supervisor.Pipe{FIFO: in(l.Files.Metrics + pipeSuffix), File: in(l.Files.Metrics)})
	}
	servers, err := serversOf(l)
	return supervisor.Spec{
		ID: l.ID, Dir: l.Dir, Argv: r.Argv, Env: l.Env, Log: in(stderrFile),
		Pipes: pipes, Console: in(l.Files.Console), ConsoleSocket: in(l.Files.ConsoleSocket), PIDFile: in(l.Files.PID), Jail: jail,
		Servers: servers,
	}, err
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
	for _, name := range append(pipesOf(l), l.Files.API, l.Files.Agent, metadataFile) {
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

// whileUp derives a context that ends with the process, too: the cause then says
// how that ended.
func (m *machine) whileUp(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		switch exit, err := m.Wait(ctx); {
		case err != nil:
		case exit.Code == 0:
			cancel(errRan)
		default:
			cancel(ended(exit))
		}
	}()
	return ctx, cancel
}

// untilRunning waits until the API says that the vCPUs run. It gives up when
// the process ends, or with ctx. A process that ended with status 0 did run.
//
// The API is not asked before the vCPUs' threads are there: a Firecracker that
// refuses its configuration while a request waits for an answer aborts in its
// API thread ("VMM disconnected"), and what was wrong is never said.
func (m *machine) untilRunning(ctx context.Context) error {
	ctx, cancel := m.whileUp(ctx)
	defer cancel(nil)
	late := time.Now().Add(patience)
	err := m.untilState(ctx, "Running", func() bool { return hasVCPUs(m.handle.VMM.PID) || time.Now().After(late) })
	if errors.Is(err, errRan) {
		return nil
	}
	return err
}

// untilState asks the API, when it may be asked, until it says that state.
func (m *machine) untilState(ctx context.Context, state string, mayAsk func() bool) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		if mayAsk() {
			info, err := m.api.Info(ctx)
			var refused *APIError
			switch {
			case err == nil && info.State == state:
				return nil
			case errors.As(err, &refused):
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// ended is the error for a VMM that ended while it was to come up.
func ended(exit vmm.Exit) error {
	if said, ok := strings.CutPrefix(exit.Reason, fromJailer); ok {
		return mvm.Errorf(mvm.ErrUnavailable, "the jailer failed: %s", said).
			WithHint("a VM that is created with --no-jailer does without a jail")
	}
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
