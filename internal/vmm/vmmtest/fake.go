package vmmtest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Fake is a driver whose VMs exist in memory only. It has no processes: the
// identities in its handles are empty. Two drivers made by NewFake share nothing.
type Fake struct {
	// Guest, when set, answers DialGuest in place of the VM.
	Guest func(ctx context.Context, h vmm.Handle, port uint32) (net.Conn, error)

	// Ignore makes guests ignore Shutdown.
	Ignore bool

	mu  sync.Mutex
	vms map[string]*fakeVM // by id; those that ended stay until they start again
}

var _ vmm.Driver = (*Fake)(nil)

// fakeVM is one run of a VM.
type fakeVM struct {
	run    uint64 // stands in the handle as the start time: a VM started anew is another one
	paused bool
	exit   *vmm.Exit
	ended  chan struct{} // closed when exit is set
	launch vmm.Launch    // as it was started, and changed since

	balloon  int             // what the guest is to give up, and has at once
	metadata json.RawMessage // nil for no service
}

// NewFake makes a driver without VMs.
func NewFake() *Fake { return &Fake{vms: map[string]*fakeVM{}} }

// Name implements vmm.Driver.
func (f *Fake) Name() string { return "fake" }

// Probe implements vmm.Driver.
func (f *Fake) Probe(context.Context) vmm.Probe {
	return vmm.Probe{Path: "/proc/self/exe", Version: "1.0.0", Accel: "tcg", Usable: true, Capabilities: vmm.Capabilities{
		Pause: true, Snapshot: true, DiskHotplug: true, Balloon: true, RateLimit: true, NICLimit: true, Metadata: true, Metrics: true, HugePages: true, Qcow2: true, Qcow2Volumes: true,
	}}
}

// Render implements vmm.Driver.
func (f *Fake) Render(l vmm.Launch) (vmm.Rendered, error) {
	if l.ID == "" || !filepath.IsAbs(l.Dir) {
		return vmm.Rendered{}, mvm.Errorf(mvm.ErrInvalid, "the VM has no id or no directory").WithHint("give it both")
	}
	if l.Jail != nil {
		return vmm.Rendered{}, mvm.Errorf(mvm.ErrUnsupported, "there is no process to be jailed").WithHint("leave the jailer off: --no-jailer")
	}
	if err := checkFake(l); err != nil {
		return vmm.Rendered{}, err
	}
	r := vmm.Rendered{Argv: []string{l.Binary, supervisor.Token(l.ID)}, Dir: l.Dir, APISocket: filepath.Join(l.Dir, l.Files.API)}
	if l.Agent {
		r.Guest = vmm.GuestChannel{Kind: "mux", Path: filepath.Join(l.Dir, l.Files.Agent)}
	}
	return r, nil
}

// Start implements vmm.Driver. What the launch names has to exist.
func (f *Fake) Start(ctx context.Context, l vmm.Launch) (vmm.Machine, error) {
	r, err := f.Render(l)
	if err != nil {
		return nil, mvm.Wrap(err, "start", l.Name)
	}
	if err := ctx.Err(); err != nil {
		return nil, mvm.Wrap(err, "start", l.Name)
	}
	paths := []string{l.Binary, l.Kernel}
	hello := GuestHello
	if l.Restore != nil { // its guest goes on, and says nothing twice
		paths, hello = []string{l.Binary, l.Restore.State, l.Restore.Mem}, ""
	}
	for _, disk := range l.Disks {
		paths = append(paths, disk.Path)
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return nil, mvm.Wrap(mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("see the VM's log"), "start", l.Name)
		}
	}
	vm, err := newFakeVM(l)
	if err != nil {
		return nil, mvm.Wrap(err, "start", l.Name)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, l.Files.Console), []byte(hello), 0o600); err != nil {
		return nil, mvm.Wrap(err, "start", l.Name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	vm.run = 1
	if old := f.vms[l.ID]; old != nil {
		if old.exit == nil {
			return nil, mvm.Wrap(mvm.Errorf(mvm.ErrConflict, "it runs already").WithHint("stop it first"), "start", l.Name)
		}
		vm.run = old.run + 1
	}
	f.vms[l.ID] = vm
	h := vmm.Handle{Version: 1, Driver: f.Name(), ID: l.ID, Dir: l.Dir, APISocket: r.APISocket, Guest: r.Guest, Accel: l.Accel}
	h.VMM.StartTime = vm.run
	return &fakeMachine{f, vm, h}, nil
}

// Attach implements vmm.Driver.
func (f *Fake) Attach(_ context.Context, h vmm.Handle) (vmm.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.Driver != f.Name() || h.Version != 1 {
		return nil, mvm.Errorf(mvm.ErrInvalid, "the handle is of %s, version %d", h.Driver, h.Version).WithHint("stop the VM and start it again")
	}
	vm := f.vms[h.ID]
	if vm == nil || vm.exit != nil || h.VMM.StartTime != vm.run || h.VMM.BootID != "" {
		return nil, mvm.Errorf(mvm.ErrNotFound, "%s: %w", h.ID, vmm.ErrGone).WithHint("start the VM again")
	}
	return &fakeMachine{f, vm, h}, nil
}

// End ends a VM from without, as a crash or the guest's power-off would.
func (f *Fake) End(id string, exit vmm.Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if vm := f.vms[id]; vm != nil {
		vm.end(exit)
	}
}

// end is called with the driver's lock held. What ended before stays as it was.
func (vm *fakeVM) end(exit vmm.Exit) {
	if vm.exit != nil {
		return
	}
	exit.At = time.Now().UTC()
	vm.exit = &exit
	close(vm.ended)
}

type fakeMachine struct {
	f  *Fake
	vm *fakeVM
	h  vmm.Handle
}

var _ vmm.Pauser = (*fakeMachine)(nil)

func (m *fakeMachine) Handle() vmm.Handle { return m.h }
func (m *fakeMachine) Close() error       { return nil }

func (m *fakeMachine) State(context.Context) (vmm.State, error) {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	switch {
	case m.vm.exit != nil:
		return vmm.StateExited, nil
	case m.vm.paused:
		return vmm.StatePaused, nil
	}
	return vmm.StateRunning, nil
}

func (m *fakeMachine) Wait(ctx context.Context) (vmm.Exit, error) {
	for { // not on both at once: in a bubble of testing/synctest no time would pass
		select {
		case <-m.vm.ended:
			return *m.vm.exit, nil
		default:
		}
		select {
		case <-ctx.Done():
			return vmm.Exit{}, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// change does something with a VM that runs.
func (m *fakeMachine) change(do func(*fakeVM)) error {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	if m.vm.exit != nil {
		return mvm.Errorf(mvm.ErrNotFound, "%s: %w", m.h.ID, vmm.ErrGone).WithHint("start the VM again")
	}
	do(m.vm)
	return nil
}

func (m *fakeMachine) Shutdown(context.Context) error {
	return m.change(func(vm *fakeVM) {
		if !m.f.Ignore && !vm.paused {
			vm.end(vmm.Exit{Reason: "guest powered off"})
		}
	})
}

func (m *fakeMachine) Kill(_ context.Context, grace time.Duration) error {
	exit := vmm.Exit{Code: 128 + 9, Signal: "SIGKILL", Reason: "the VMM was ended by SIGKILL"}
	if grace > 0 {
		exit = vmm.Exit{Code: 128 + 15, Signal: "SIGTERM", Reason: "the VMM was ended by SIGTERM"}
	}
	if err := m.change(func(vm *fakeVM) { vm.end(exit) }); !errors.Is(err, vmm.ErrGone) {
		return err
	}
	return nil
}

func (m *fakeMachine) Pause(context.Context) error {
	return m.change(func(vm *fakeVM) { vm.paused = true })
}

func (m *fakeMachine) Resume(context.Context) error {
	return m.change(func(vm *fakeVM) { vm.paused = false })
}

func (m *fakeMachine) DialGuest(ctx context.Context, port uint32) (net.Conn, error) {
	if m.h.Guest.Kind == "" {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "the VM was started without a channel for the agent").WithHint("use ssh")
	}
	if m.f.Guest == nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "the guest does not answer on port %d", port).WithHint("wait until the guest is up")
	}
	return m.f.Guest(ctx, m.h, port)
}

// FakeFixture is the suite's fixture of the fake.
func FakeFixture(testing.TB) Fixture {
	f := NewFake()
	return Fixture{
		Driver: f, Hello: GuestHello, InMemory: true, Taps: []string{"tap0", "tap1", "tap2"},
		Launch: func(t testing.TB) vmm.Launch { return NewLaunch(t, "/proc/self/exe", "tcg", "/proc/self/exe") },
		Crash: func(_ testing.TB, h vmm.Handle) {
			f.End(h.ID, vmm.Exit{Code: 128 + 9, Signal: "SIGKILL", Reason: "the VMM was ended by SIGKILL"})
		},
	}
}
