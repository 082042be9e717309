package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// plugDriver is the world's driver with disks that can be changed while a VM runs.
type plugDriver struct {
	*liveDriver

	mu    sync.Mutex
	disks map[string][]vmm.Disk // by VM
	fail  error                 // of every change, which is then not made
}

type plugMachine struct {
	vmm.Machine
	vmm.Pauser
	d *plugDriver
}

// hotplug gives the world such a driver.
func (w *world) hotplug() *plugDriver {
	d := &plugDriver{liveDriver: w.driver, disks: map[string][]vmm.Disk{}}
	w.plug = d
	return d
}

func (d *plugDriver) Start(ctx context.Context, l vmm.Launch) (vmm.Machine, error) {
	d.mu.Lock()
	d.disks[l.ID] = slices.Clone(l.Disks)
	d.mu.Unlock()
	return d.liveDriver.Start(ctx, l)
}

func (d *plugDriver) Attach(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	m, err := d.liveDriver.Attach(ctx, h)
	if err != nil {
		return nil, err
	}
	return plugMachine{m, m.(vmm.Pauser), d}, nil
}

// names are the volumes that a VM's machine has.
func (d *plugDriver) names(vm string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := []string{}
	for _, disk := range d.disks[vm] {
		if id, ok := strings.CutPrefix(disk.ID, "vol-"); ok {
			out = append(out, id)
		}
	}
	return out
}

func (m plugMachine) change(id string, do func(disks []vmm.Disk, i int) ([]vmm.Disk, error)) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	vm := m.Handle().ID
	disks, err := do(m.d.disks[vm], slices.IndexFunc(m.d.disks[vm], func(d vmm.Disk) bool { return d.ID == id }))
	if err == nil {
		err = m.d.fail
	}
	if err == nil {
		m.d.disks[vm] = disks
	}
	return err
}

func (m plugMachine) AttachDisk(_ context.Context, disk vmm.Disk) error {
	return m.change(disk.ID, func(disks []vmm.Disk, i int) ([]vmm.Disk, error) {
		if i >= 0 {
			return nil, mvm.Errorf(mvm.ErrExists, "the VM has a disk %s", disk.ID).WithHint("detach it first")
		}
		return append(disks, disk), nil
	})
}

func (m plugMachine) DetachDisk(_ context.Context, id string) error {
	return m.change(id, func(disks []vmm.Disk, i int) ([]vmm.Disk, error) {
		if i < 0 {
			return nil, mvm.Errorf(mvm.ErrNotFound, "the VM has no disk %s", id).WithHint("see 'mvm vm inspect'")
		}
		return slices.Delete(slices.Clone(disks), i, i+1), nil
	})
}

// withVolume makes a world with a VM that runs, and a volume.
func withVolume(t *testing.T) (*world, *Client, *plugDriver, *mvm.VMInstanceItem, *mvm.VolumeItem) {
	t.Helper()
	w := newWorld(t)
	m := w.open()
	d := w.hotplug()
	w.stock(m)
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", NoAgent: true})
	if err != nil {
		t.Fatal(err)
	}
	v, err := m.Volume.Create(t.Context(), VolumeCreateInput{Name: "data", Size: "1M"})
	if err != nil {
		t.Fatal(err)
	}
	return w, m, d, res.VMs[0], v
}

func (w *world) stop(m *Client, name string) {
	w.t.Helper()
	if _, err := m.VM.Stop(w.t.Context(), VMInput{Identifiers: []string{name}, Force: true}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start(m *Client, name string) {
	w.t.Helper()
	if _, err := m.VM.Start(w.t.Context(), sel(name)); err != nil {
		w.t.Fatal(err)
	}
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(append([]string{}, want...), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestAttachAndDetach(t *testing.T) {
	w, m, d, vm, v := withVolume(t)
	ctx := t.Context()
	before := w.state()
	res, err := m.VM.AttachVolume(ctx, sel("web"), "data")
	if err != nil || !res.Live || len(res.Warnings) > 0 || res.VM.ID != vm.ID || res.Volume.Status != mvm.VolumeAttached || *res.Volume.VMID != vm.ID {
		t.Fatalf("%+v, %v", res, err)
	}
	same(t, "the machine has", d.names(vm.ID), v.ID)
	same(t, "the VM has", res.VM.VolumeIDs, v.ID)
	_, err = m.VM.AttachVolume(ctx, sel("web"), "data")
	refused(t, err, mvm.ErrConflict, `it is attached to VM "web" already`)

	w.stop(m, "web")
	w.start(m, "web")
	same(t, "started anew it has", d.names(vm.ID), v.ID)
	if res, err = m.VM.DetachVolume(ctx, sel("web"), v.ID[:6]); err != nil || !res.Live || res.Volume.Status != mvm.VolumeAvailable {
		t.Fatalf("%+v, %v", res, err)
	}
	same(t, "the machine has", d.names(vm.ID))
	_, err = m.VM.DetachVolume(ctx, sel("web"), "data")
	refused(t, err, mvm.ErrNotFound, "does not have it")
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Error(d)
	}

	w.stop(m, "web")
	if res, err = m.VM.AttachVolume(ctx, sel("web"), "data:ro"); err != nil || res.Live || len(res.Warnings) > 0 || !res.Attachment.IsReadOnly {
		t.Fatalf("%+v, %v", res, err)
	}
	w.start(m, "web")
	same(t, "started it has", d.names(vm.ID), v.ID)
	if disks := d.disks[vm.ID]; !disks[1].ReadOnly {
		t.Errorf("it can write to it: %+v", disks)
	}
	w.stop(m, "web")
	if res, err = m.VM.DetachVolume(ctx, sel("web"), "data"); err != nil || res.Live {
		t.Fatalf("%+v, %v", res, err)
	}
	events, err := m.core.st.ListEvents(ctx, vm.ID, 100, 0)
	if err != nil || !slices.ContainsFunc(events, func(e *store.Event) bool { return e.Cause == "volume data attached" }) {
		t.Errorf("its history: %v, %v", events, err)
	}
}

// Where a running VM cannot be changed, the record says what it has now and what it
// has when it starts anew; nobody else gets a volume that it may write to.
func TestAttachForLater(t *testing.T) {
	w, m, d, vm, v := withVolume(t)
	ctx := t.Context()
	d.fail = mvm.Errorf(mvm.ErrUnsupported, "the VM was started without a place for disks").WithHint("start it anew")
	res, err := m.VM.AttachVolume(ctx, sel("web"), "data")
	if err != nil || res.Live || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "next start") || res.Attachment.Pending != mvm.PendingAttach {
		t.Fatalf("%+v, %v", res, err)
	}
	if res, err = m.VM.DetachVolume(ctx, sel("web"), "data"); err != nil || len(res.Warnings) > 0 || res.Volume.Status != mvm.VolumeAvailable {
		t.Fatalf("what it does not have yet: %+v, %v", res, err)
	}
	if _, err = m.VM.AttachVolume(ctx, sel("web"), "data"); err != nil {
		t.Fatal(err)
	}
	w.stop(m, "web")
	w.start(m, "web")
	same(t, "started anew it has", d.names(vm.ID), v.ID)

	if res, err = m.VM.DetachVolume(ctx, sel("web"), "data"); err != nil || res.Live || len(res.Warnings) != 1 || res.Attachment.Pending != mvm.PendingDetach || res.Volume.Status != mvm.VolumeAttached {
		t.Fatalf("%+v, %v", res, err)
	}
	_, err = m.VM.DetachVolume(ctx, sel("web"), "data")
	refused(t, err, mvm.ErrConflict, "only until it ends")
	_, err = m.VM.Create(ctx, VMCreateInput{Name: "thief", Volumes: []string{"data"}})
	refused(t, err, mvm.ErrConflict, `it is attached to VM "web"`)
	if res, err = m.VM.AttachVolume(ctx, sel("web"), "data"); err != nil || !res.Live || res.Attachment.Pending != "" {
		t.Fatalf("kept after all: %+v, %v", res, err)
	}
	if _, err = m.VM.DetachVolume(ctx, sel("web"), "data"); err != nil {
		t.Fatal(err)
	}
	w.stop(m, "web")
	w.start(m, "web")
	same(t, "started anew it has", d.names(vm.ID))
	if got, err := m.Volume.Get(ctx, vol("data")); err != nil || got.Status != mvm.VolumeAvailable {
		t.Errorf("%+v, %v", got, err)
	}
}

// bareDriver attaches to machines that can nothing besides what all can.
type bareDriver struct{ *liveDriver }

type bareMachine struct{ vmm.Machine }

func (d bareDriver) Attach(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	m, err := d.liveDriver.Attach(ctx, h)
	return bareMachine{m}, err
}

// A machine that has no such ability at all.
func TestAttachWithoutHotplug(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	m.core.qemu = func() vmm.Driver { return bareDriver{w.driver} }
	w.stock(m)
	ctx := t.Context()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Volume.Create(ctx, VolumeCreateInput{Name: "data", Size: "1M"}); err != nil {
		t.Fatal(err)
	}
	res, err := m.VM.AttachVolume(ctx, sel("web"), "data:/srv")
	if err != nil || res.Live || res.Attachment.Pending != mvm.PendingAttach || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "cannot change the disks") {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestAttachRefuses(t *testing.T) {
	w, m, d, _, _ := withVolume(t)
	ctx := t.Context()
	if _, err := m.Volume.Create(ctx, VolumeCreateInput{Name: "fixed", Size: "1M", ReadOnly: new(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "paused", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Pause(ctx, sel("paused")); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	for _, c := range []struct {
		vm, volume string
		kind       mvm.Kind
		says       string
	}{
		{"none", "data", mvm.ErrNotFound, `no VM "none"`},
		{"web", "none", mvm.ErrNotFound, `no volume "none"`},
		{"web", "data:here", mvm.ErrInvalid, "absolute path"},
		{"web", "fixed:rw", mvm.ErrInvalid, "made read-only"},
		{"paused", "data", mvm.ErrConflict, "is paused"},
	} {
		_, err := m.VM.AttachVolume(ctx, sel(c.vm), c.volume)
		refused(t, err, c.kind, c.says)
	}
	_, err := m.VM.AttachVolume(ctx, sel("web", "paused"), "data")
	refused(t, err, mvm.ErrInvalid, "exactly one VM")
	w.root = false
	_, err = m.VM.AttachVolume(ctx, sel("web"), "data")
	refused(t, err, mvm.ErrPrivilege, "sudo mvm host init")
	w.root = true
	d.fail = mvm.Errorf(mvm.ErrUnavailable, "the VMM says no").WithHint("try again")
	_, err = m.VM.AttachVolume(ctx, sel("web"), "data")
	refused(t, err, mvm.ErrUnavailable, "the VMM says no")
	d.fail = nil
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Errorf("something was left:\n%s", d)
	}
	if _, err := m.VM.AttachVolume(ctx, sel("web"), "data"); err != nil {
		t.Fatal(err)
	}
	before = w.state()
	d.fail = mvm.Errorf(mvm.ErrBusy, "the guest keeps it").WithHint("unmount it there")
	_, err = m.VM.DetachVolume(ctx, sel("web"), "data")
	refused(t, err, mvm.ErrBusy, "the guest keeps it")
	d.fail = nil
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Errorf("something was changed:\n%s", d)
	}
}

// Wherever attaching or detaching fails, machine and record agree afterwards.
func TestAttachFailureAtEveryStep(t *testing.T) {
	w, m, d, vm, v := withVolume(t)
	ctx := t.Context()
	for _, c := range []struct {
		kind, step string
		do         func(m *Client) error
		has        []string // the machine, before and after
	}{
		{opAttach, "plug", func(m *Client) error { _, err := m.VM.AttachVolume(ctx, sel("web"), "data"); return err }, nil},
		{opDetach, "unplug", func(m *Client) error { _, err := m.VM.DetachVolume(ctx, sel("web"), "data"); return err }, []string{v.ID}},
	} {
		before := w.state()
		for _, at := range [][2]string{{"reserve", "after"}, {c.step, "before"}, {c.step, "after"}, {"commit", "before"}} {
			for _, action := range []string{"error", "cancel"} {
				fault := fmt.Sprintf("%s:%s:%s:%s", action, c.kind, at[0], at[1])
				if err := c.do(w.faulty(fault)); err == nil {
					t.Fatalf("%s: nothing failed", fault)
				}
				if d := cmp.Diff(before, w.state()); d != "" {
					t.Errorf("%s: the world changed:\n%s", fault, d)
				}
				same(t, fault+": the machine has", d.names(vm.ID), c.has...)
			}
		}
		if err := c.do(m); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that the guest does not give back when attaching is undone is not given to
// anybody else while the VM runs.
func TestUndoneAttachThatIsKept(t *testing.T) {
	w, m, d, vm, v := withVolume(t)
	ctx := t.Context()
	step := &plugStep{plugged: plugged{c: m.core, VMID: vm.ID, Volume: v.ID}, disk: vmVolume{item: v}.disk(m.core.paths)}
	undo := fmt.Appendf(nil, `{"volume_id":%q}`, v.ID)
	st, err := m.core.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(st.AttachVolume(ctx, &mvm.VolumeAttachment{VolumeID: v.ID, VMID: vm.ID}), step.Apply(ctx)); err != nil {
		t.Fatal(err)
	}
	d.fail = mvm.Errorf(mvm.ErrBusy, "the guest keeps it").WithHint("unmount it there")
	if err := errors.Join(step.Revert(ctx), st.Tx(ctx, func(tx *store.Tx) error { return unattach(tx, vm.ID, undo) })); err != nil {
		t.Fatal(err)
	}
	_, err = m.VM.Create(ctx, VMCreateInput{Name: "thief", Volumes: []string{"data"}})
	refused(t, err, mvm.ErrConflict, `it is attached to VM "web"`)
	w.stop(m, "web")
	if got, err := m.Volume.Get(ctx, vol("data")); err != nil || got.Status != mvm.VolumeAvailable {
		t.Errorf("%+v, %v", got, err)
	}
}

// A mount that the guest cannot make is told beside what was done.
func TestAttachWithMount(t *testing.T) {
	w, m, _, _, _ := withVolume(t)
	ctx := t.Context()
	res, err := m.VM.AttachVolume(ctx, sel("web"), "data:/srv")
	if err != nil || !res.Live || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "no agent") || res.Attachment.MountPoint != "/srv" {
		t.Errorf("without an agent: %+v, %v", res, err)
	}
	if _, err := m.VM.DetachVolume(ctx, sel("web"), "data"); err != nil {
		t.Fatal(err)
	}
	w.driver.Guest = func(context.Context, vmm.Handle, uint32) (net.Conn, error) { return nil, errors.New("nobody there") }
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "db"}); err != nil {
		t.Fatal(err)
	}
	res, err = m.VM.AttachVolume(ctx, sel("db"), "data:/srv")
	refused(t, err, mvm.ErrUnavailable, "attached, but not mounted: its agent does not answer")
	if res == nil || !res.Live || res.Volume.Status != mvm.VolumeAttached {
		t.Errorf("%+v", res)
	}
	_, err = m.VM.DetachVolume(ctx, sel("db"), "data")
	refused(t, err, mvm.ErrUnavailable, "nobody can tell whether the guest uses it")
	p, err := w.startPlan(m, "db")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := p.bootConfig()
	if err != nil || len(cfg.Volumes) != 1 || cfg.Volumes[0].Mount != "/srv" || cfg.Volumes[0].Serials[0] != "vol-"+res.Volume.ID || len(cfg.Volumes[0].Serials) != 2 {
		t.Errorf("its guest is told %+v, %v", cfg.Volumes, err)
	}
	if res, err = m.VM.DetachVolume(ctx, VMInput{Identifiers: []string{"db"}, Force: true}, "data"); err != nil || res.Volume.Status != mvm.VolumeAvailable {
		t.Errorf("without asking: %+v, %v", res, err)
	}
}
