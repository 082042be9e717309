package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
)

// world is a machine that exists in memory and in one directory: its kernel's
// network and its hypervisor are fakes, and everyone may change it. Several
// clients may be opened on it one after the other, as commands are.
type world struct {
	t      *testing.T
	dir    string
	net    *nettest.Fake
	driver *liveDriver
	plug   *plugDriver // in its place, when set
	root   bool
	fc     vmm.Probe // what Firecracker says of this machine

	names     *fakeNames // the DNS servers
	listening int        // a port of the host that a program listens on
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t, dir: t.TempDir(), net: &nettest.Fake{}, names: &fakeNames{}, driver: newLiveDriver(t), root: true,
		fc: vmm.Probe{Problems: []vmm.Problem{{What: "there is no firecracker", Hint: "get it", Fatal: true}}},
	}
}

// open makes a client on the world, as a new process would.
func (w *world) open() *Client {
	w.t.Helper()
	m, err := Open(w.t.Context(), Config{CacheDir: filepath.Join(w.dir, "cache"), ConfigDir: filepath.Join(w.dir, "config"), Executable: vmmtest.TinyGuest(w.t, false)})
	if err != nil {
		w.t.Fatal(err)
	}
	c := m.core
	c.net, c.isRoot = network.With(w.net, c.firewallBackend), func() bool { return w.root }
	c.owned, c.taken = w.net.Owned, w.net.Taken
	c.access = func(what string) error {
		return &mvm.NeedsInteraction{What: what + " needs root", Command: []string{"sudo", "mvm", "host", "init"}}
	}
	c.listens = func(p network.Publish) error { // the world's own ports, not this machine's
		if w.listening == p.HostPort {
			return mvm.Errorf(mvm.ErrExists, "%s port %d of the host is used by sshd (process 7)", p.Protocol, p.HostPort).WithHint("publish another port")
		}
		return nil
	}
	c.qemu = func() vmm.Driver {
		if w.plug != nil {
			return w.plug
		}
		return w.driver
	}
	c.firecracker = func(string) vmm.Driver { return probed{Driver: vmmtest.NewFake(), name: "firecracker", probe: w.fc} }
	c.serve, c.dns = serveLocally, w.names
	w.t.Cleanup(func() { _ = m.Close() })
	return m
}

// faulty makes a client whose operations fail at a point.
func (w *world) faulty(fault string) *Client {
	w.t.Helper()
	w.t.Setenv(op.FaultVariable, fault)
	m := w.open()
	if _, err := m.core.open(w.t.Context()); err != nil { // reads the variable
		w.t.Fatal(err)
	}
	w.t.Setenv(op.FaultVariable, "")
	return m
}

// stock gives the world an image and a kernel, which are its defaults.
func (w *world) stock(m *Client) (*mvm.ImageItem, *mvm.KernelItem) {
	w.t.Helper()
	c := m.core
	st, err := c.open(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	image := &mvm.ImageItem{
		ID: newID(), Type: "tiny", Version: "1", Name: "Tiny 1", Arch: "x86_64", Path: "images/tiny/disk.raw", FSType: "ext4",
		MinimumRootfsSizeMiB: 64, OriginalSize: 64 << 20, IsDefault: true, IsPresent: true, PulledAt: now(), CreatedAt: now(), UpdatedAt: now(),
	}
	kernel := &mvm.KernelItem{
		ID: newID(), Name: "vmlinux-tiny-6.1", BaseName: "vmlinux-tiny", Version: "6.1", Arch: "x86_64", Type: "tiny",
		Path: "kernels/tiny/vmlinux", IsDefault: true, IsPresent: true, CreatedAt: now(), UpdatedAt: now(),
	}
	w.file(c.paths.abs(image.Path), 64<<20)
	w.file(c.paths.abs(kernel.Path), 1)
	if err := errors.Join(st.InsertImage(w.t.Context(), image), st.InsertKernel(w.t.Context(), kernel)); err != nil {
		w.t.Fatal(err)
	}
	return image, kernel
}

// file makes a file of that many bytes, all zero.
func (w *world) file(path string, size int64) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		w.t.Fatal(err)
	}
}

// state is all that operations on VMs may change, a line each, but for the
// history of what happened.
func (w *world) state() []string {
	w.t.Helper()
	m := w.open()
	ctx := w.t.Context()
	st, err := m.core.open(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	lines := []string{}
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	snapshots, err := st.ListSnapshots(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range snapshots {
		add("snapshot %s of %s in %s", s.Name, s.VMName, s.Path)
	}
	vms, err1 := m.VM.ListAll(ctx)
	nets, err2 := st.ListNetworks(ctx)
	ops, err3 := st.ListOps(ctx, "")
	taps, err4 := w.net.Taps(ctx)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		w.t.Fatal(err)
	}
	for _, v := range vms {
		add("vm %s %s %s %s pid=%v reason=%q", v.ID, v.Name, v.Status, v.IPv4, v.PID > 0, v.StatusReason)
	}
	for _, n := range nets {
		leases, err := st.ListLeases(ctx, n.ID)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, l := range leases {
			add("lease %s %s", l.IPv4, deref(l.VMID))
		}
	}
	volumes, err5 := st.ListVolumes(ctx)
	attached, err6 := st.ListAttachments(ctx)
	if err := errors.Join(err5, err6); err != nil {
		w.t.Fatal(err)
	}
	for _, v := range volumes {
		add("volume %s %s %s %d %s by %q", v.ID, v.Name, v.Format, v.SizeBytes, v.Status, deref(v.VMID))
	}
	for _, a := range attached {
		add("volume %s on %s ro=%v at %q pending=%q", a.VolumeID, a.VMID, a.IsReadOnly, a.MountPoint, a.Pending)
	}
	for _, o := range ops {
		add("operation %s %s %s", o.Kind, o.Subject, o.State)
	}
	for _, tap := range taps {
		add("tap %s %s", tap.Name, tap.VMID)
	}
	for _, name := range w.net.Tables() {
		if strings.HasPrefix(name, "mvm-nocloud-") {
			add("table %s", name)
		}
	}
	for _, id := range w.driver.running() {
		add("process %s", id)
	}
	lines = append(lines, w.files()...)
	slices.Sort(lines)
	return lines
}

// files are the files of VMs, but for what is made anew at each start.
func (w *world) files() []string {
	var out []string
	root := filepath.Join(w.dir, "cache")
	for _, part := range []string{"vms", "ops", "snapshots", "volumes"} {
		err := filepath.WalkDir(filepath.Join(root, part), func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			}
			if rel, _ := filepath.Rel(root, path); d.Name() != "console.log" && d.Name() != seedName && rel != part && d.Name() != "asset-default-key" && d.Name() != assetGate {
				out = append(out, "file "+rel)
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

// probed is a driver that says something else of the machine.
type probed struct {
	vmm.Driver
	name  string
	probe vmm.Probe
}

func (p probed) Name() string                    { return p.name }
func (p probed) Probe(context.Context) vmm.Probe { return p.probe }

// liveDriver is the fake driver with a process behind each VM, which has the VM's
// token in its arguments as every VMM does. VM and process end with each other.
type liveDriver struct {
	*vmmtest.Fake
	t *testing.T

	mu   sync.Mutex
	runs map[string]*liveRun // by id
}

type liveRun struct {
	launch vmm.Launch
	inner  vmm.Handle // as the fake knows it
	outer  vmm.Handle // with the process
	ended  chan struct{}
}

func newLiveDriver(t *testing.T) *liveDriver {
	d := &liveDriver{Fake: vmmtest.NewFake(), t: t, runs: map[string]*liveRun{}}
	t.Cleanup(func() {
		for _, r := range d.runs {
			_ = proc.Kill(context.Background(), r.outer.VMM, 0)
			<-r.ended
		}
	})
	return d
}

// Name is that of the driver whose place it takes.
func (d *liveDriver) Name() string { return "qemu" }

type liveMachine struct {
	allOf
	outer vmm.Handle
}

// allOf is all that the fake's machines can.
type allOf interface {
	vmm.Machine
	vmm.Pauser
	vmm.Snapshotter
	vmm.DiskHotplugger
	vmm.Ballooner
	vmm.RateLimiter
	vmm.NICLimiter
	vmm.MetadataHolder
	vmm.Metered
}

func (m liveMachine) Handle() vmm.Handle { return m.outer }

// Start waits for the VM's last process: a supervisor would have been killed too.
func (d *liveDriver) Start(ctx context.Context, l vmm.Launch) (vmm.Machine, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.runs[l.ID]; old != nil && !proc.Alive(old.outer.VMM) {
		<-old.ended
	}
	m, err := d.Fake.Start(ctx, l)
	if err != nil {
		return nil, err
	}
	// It waits for a line that never comes, in no child that could outlive it.
	stdin, keep, err := os.Pipe()
	if err != nil {
		d.t.Fatal(err)
	}
	p, id, err := proc.StartDetached(proc.Spec{Path: "/bin/sh", Args: []string{"-c", "read line", supervisor.Token(l.ID)}, Stdin: stdin})
	_ = stdin.Close()
	if err != nil {
		d.t.Fatal(err)
	}
	r := &liveRun{launch: l, inner: m.Handle(), outer: m.Handle(), ended: make(chan struct{})}
	r.outer.VMM, r.outer.Driver = id, d.Name()
	d.runs[l.ID] = r
	go func() { // the VM ends: by Shutdown, by its guest, or with its process
		_, _ = m.Wait(context.Background())
		_ = p.Kill()
	}()
	go func() {
		defer close(r.ended)
		_, _ = p.Wait()
		_ = keep.Close()
		d.End(l.ID, vmm.Exit{Code: 128 + 9, Signal: "SIGKILL"})
	}()
	return liveMachine{m.(allOf), r.outer}, nil
}

func (d *liveDriver) Attach(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	d.mu.Lock()
	r := d.runs[h.ID]
	d.mu.Unlock()
	if r == nil || r.outer.VMM != h.VMM || !proc.Alive(h.VMM) {
		return nil, vmm.ErrGone
	}
	m, err := d.Fake.Attach(ctx, r.inner)
	if err != nil {
		return nil, err
	}
	return liveMachine{m.(allOf), h}, nil
}

// launched is what the driver was last told of a VM.
func (w *world) launched(id string) vmm.Launch {
	w.t.Helper()
	w.driver.mu.Lock()
	defer w.driver.mu.Unlock()
	r := w.driver.runs[id]
	if r == nil {
		w.t.Fatalf("%s was not launched", id)
	}
	return r.launch
}

// running are the ids of the VMs that have a process.
func (d *liveDriver) running() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []string
	for id := range d.runs {
		if found, err := proc.FindByArg(supervisor.Token(id)); err != nil || len(found) > 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// eventually polls, for what another process does.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not yet: %s", what)
		}
	}
}

// refused checks the kind of an error, that its hint is there, and what it says.
func refused(t *testing.T, err error, kind mvm.Kind, says string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v; want %q and %q on one line", err, kind, says)
		return
	}
	var ask *mvm.NeedsInteraction
	if mvm.HintOf(err) == "" && !errors.As(err, &ask) {
		t.Errorf("no hint: %v", err)
	}
}
