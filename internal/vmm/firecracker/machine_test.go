package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// bench is a Firecracker to be tested with, the fake or the real one, and a
// kernel and initrd whose guest behaves as fakevmm's does.
type bench struct {
	fake                   bool
	blind                  bool // the fake does not find its API description
	binary, kernel, initrd string
	jailer                 string        // "" runs it unjailed
	taps                   []string      // tap devices that nobody uses
	patience               time.Duration // for what is expected to happen
}

// lenient reports whether the bench's fake has no API description to refuse by.
func (b bench) lenient() bool { return b.fake && (b.blind || fakevmm.SpecPath() == "") }

func fakeBench(t *testing.T) bench {
	b := bench{fake: true, binary: fakevmm.Install(t), taps: []string{"tap0", "tap1", "tap2"}, patience: 2 * time.Minute}
	b.kernel = filepath.Join(t.TempDir(), "vmlinux")
	b.initrd = filepath.Join(t.TempDir(), "initrd")
	for _, name := range []string{b.kernel, b.initrd} {
		if err := os.WriteFile(name, []byte("not looked at"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// realBench is what the lab (test/lab) brings along.
func realBench(t *testing.T) bench {
	testenv.Require(t, "firecracker", "kvm")
	b := bench{
		binary: os.Getenv(testenv.FirecrackerVariable), kernel: os.Getenv("MVM_TEST_KERNEL"),
		initrd: os.Getenv("MVM_TEST_INITRD"), taps: strings.Fields(os.Getenv("MVM_TEST_TAPS")), patience: 4 * time.Minute,
	}
	if b.kernel == "" || b.initrd == "" {
		t.Skip("MVM_TEST_KERNEL and MVM_TEST_INITRD name no guest; see test/lab")
	}
	return b
}

// launch is a VM with a disk and the channel for the agent.
func (b bench) launch(t testing.TB) vmm.Launch {
	t.Helper()
	l := launch()
	l.ID = fmt.Sprintf("%016x", rand.Uint64()) // processes are found by it
	l.Dir, l.Binary, l.Kernel, l.Initrd = t.TempDir(), b.binary, b.kernel, b.initrd
	l.VCPUs, l.MemMiB, l.NICs, l.CPUTemplate = 1, 256, nil, nil
	l.Disks = l.Disks[:1]
	l.Disks[0].Path = filepath.Join(l.Dir, "rootfs.raw")
	if err := os.WriteFile(l.Disks[0].Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	b.enjail(&l)
	return l
}

// vm is a started machine and its files.
type vm struct {
	vmm.Machine
	bench
	driver *Driver
	launch vmm.Launch
}

func newDriver(t *testing.T) *Driver {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Launcher: supervisor.Launcher{Exe: self}})
}

func (b bench) start(t *testing.T, l vmm.Launch) *vm {
	t.Helper()
	d := newDriver(t)
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatalf("%v (%s)", err, mvm.HintOf(err))
	}
	t.Cleanup(func() {
		if err := m.Kill(context.Background(), 0); err != nil {
			t.Error(err)
		}
		// Its supervisor writes to the directory, which is about to go.
		if _, err := m.Wait(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &vm{Machine: m, bench: b, driver: d, launch: l}
}

// console returns what the console's log has.
func (v *vm) console() string {
	data, _ := os.ReadFile(filepath.Join(v.launch.Dir, v.launch.Files.Console))
	return string(data)
}

// typeLine types on the console, as a viewer does.
func (v *vm) typeLine(t *testing.T, line string) {
	t.Helper()
	conn, err := fsx.DialUnix(t.Context(), filepath.Join(v.launch.Dir, v.launch.Files.ConsoleSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		t.Error(err)
	}
}

// until polls for something that is expected to happen.
func (v *vm) until(t *testing.T, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), v.patience)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !f() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("%s did not happen; the console: %q", what, v.console())
		}
	}
}

func (v *vm) shows(t *testing.T, text string) {
	t.Helper()
	v.until(t, "the text "+text, func() bool { return strings.Contains(v.console(), text) })
}

// echo dials the guest until it answers and passes data to and fro.
func (v *vm) echo(t *testing.T) {
	t.Helper()
	v.until(t, "an answer on vsock", func() bool {
		conn, err := v.DialGuest(t.Context(), 1024)
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(v.patience))
		got := make([]byte, 5)
		if _, err := io.WriteString(conn, "hello"); err != nil {
			return false
		}
		_, err = io.ReadFull(conn, got)
		return err == nil && string(got) == "hello"
	})
}

func (v *vm) wantState(t *testing.T, want vmm.State) {
	t.Helper()
	if got, err := v.State(t.Context()); err != nil || got != want {
		t.Errorf("state %q, error %v; want %q", got, err, want)
	}
}

func TestFake(t *testing.T) { suite(t, fakeBench) }
func TestReal(t *testing.T) { realBench(t); suite(t, realBench) }

func suite(t *testing.T, with func(*testing.T) bench) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, bench)
	}{
		{"life over PCI", func(t *testing.T, b bench) { testLife(t, b, true) }},
		{"life over MMIO", func(t *testing.T, b bench) { testLife(t, b, false) }},
		{"pause", testPause},
		{"power off", testPowerOff},
		{"kill", testKill},
		{"start fails", testStartFails},
		{"cancelled", testCancelled},
		{"many devices", testManyDevices},
		{"device requests", testDevices},
		{"restore", testRestore},
		{"restore unlike", testUnlike},
		{"restore without clock", testNoClock},
		{"bounded files", testBounded},
		{"orphan", testOrphan},
		{"hotplugged", testHotplugged},
		{"no hotplug by MMIO", testNoHotplugByMMIO},
		{"served disks", testServed},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, with(t)) })
	}
}

func testLife(t *testing.T, b bench, pci bool) {
	l := b.launch(t)
	l.PCI = pci
	v := b.start(t, l)
	v.wantState(t, vmm.StateRunning)
	v.shows(t, "ready")
	v.typeLine(t, "does it echo?")
	v.shows(t, "does it echo?")
	v.echo(t)
	if conn, err := v.DialGuest(t.Context(), 1025); conn != nil || !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("a port where nothing listens: %v, %v", conn, err)
	}
	data, err := json.Marshal(v.Handle())
	if err != nil {
		t.Fatal(err)
	}
	var h vmm.Handle
	if err := json.Unmarshal(data, &h); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(v.Handle(), h); d != "" {
		t.Errorf("the stored handle differs:\n%s", d)
	}
	again, err := v.driver.Attach(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.wantEnd(t, 0, "")
	if _, err := v.driver.Attach(t.Context(), h); !errors.Is(err, vmm.ErrGone) || mvm.HintOf(err) == "" {
		t.Errorf("attach to what has ended: %v", err)
	}
	// A second start in the same directory finds the sockets of the first.
	v = b.start(t, l)
	v.shows(t, "ready")
}

// wantEnd waits for the end of the VMM.
func (v *vm) wantEnd(t *testing.T, code int, signal string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), v.patience)
	defer cancel()
	exit, err := v.Wait(ctx)
	if err != nil || exit.Code != code || exit.Signal != signal || exit.Reason == "" || exit.At.IsZero() {
		t.Errorf("exit %+v, error %v; want code %d, signal %q; the console: %q", exit, err, code, signal, v.console())
	}
	v.wantState(t, vmm.StateExited)
	if _, err := v.DialGuest(t.Context(), 1024); !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("dial after the end: %v", err)
	}
	if err := v.Kill(t.Context(), time.Second); err != nil {
		t.Errorf("kill after the end: %v", err)
	}
}

func testPause(t *testing.T, b bench) {
	v := b.start(t, b.launch(t))
	v.shows(t, "ready")
	v.echo(t)
	p := v.Machine.(vmm.Pauser)
	for range 2 {
		if err := errors.Join(p.Pause(t.Context()), p.Pause(t.Context())); err != nil {
			t.Fatal(err)
		}
		v.wantState(t, vmm.StatePaused)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if conn, err := v.DialGuest(ctx, 1024); conn != nil || !errors.Is(err, mvm.ErrUnavailable) {
			t.Errorf("a paused guest answers: %v, %v", conn, err)
		}
		cancel()
		if err := errors.Join(p.Resume(t.Context()), p.Resume(t.Context())); err != nil {
			t.Fatal(err)
		}
		v.wantState(t, vmm.StateRunning)
		v.echo(t) // silent after a plain resume on 1.16.1
	}
}

func testPowerOff(t *testing.T, b bench) {
	v := b.start(t, b.launch(t))
	v.shows(t, "ready")
	v.typeLine(t, "poweroff")
	v.wantEnd(t, 0, "")
}

func testKill(t *testing.T, b bench) {
	v := b.start(t, b.launch(t))
	if err := v.Kill(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	v.wantEnd(t, 137, "SIGKILL")

	v = b.start(t, b.launch(t))
	if err := v.Kill(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if b.jailer != "" { // SIGTERM does not reach the first process of a pid namespace
		v.wantEnd(t, 137, "SIGKILL")
		return
	}
	v.wantEnd(t, 143, "SIGTERM")
}

func testStartFails(t *testing.T, b bench) {
	says := map[string]string{
		"no kernel": "nonexistent/vmlinux", "no initrd": "nonexistent/initrd", "no disk": "nonexistent/disk",
		"no binary": "no such file", "bad MAC": "InvalidJson", "unsupported": "vmdk",
	}
	for name, change := range map[string]func(*vmm.Launch){
		"no kernel":   func(l *vmm.Launch) { l.Kernel = "/nonexistent/vmlinux" },
		"no initrd":   func(l *vmm.Launch) { l.Initrd = "/nonexistent/initrd" },
		"no disk":     func(l *vmm.Launch) { l.Disks[0].Path = "/nonexistent/disk" },
		"no binary":   func(l *vmm.Launch) { l.Binary = "/nonexistent/firecracker" },
		"bad MAC":     func(l *vmm.Launch) { l.NICs = []vmm.NIC{{ID: "eth0", Tap: "none", MAC: "xx"}} },
		"unsupported": func(l *vmm.Launch) { l.Disks[0].Format = "vmdk" },
	} {
		t.Run(name, func(t *testing.T) {
			l := b.launch(t)
			change(&l)
			m, err := newDriver(t).Start(t.Context(), l)
			if m != nil || err == nil || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %v, %v", m, err)
			}
			if want := says[name]; !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want it to say %q", err, want)
			}
			wantNothing(t, l)
		})
	}
}

// wantNothing checks that a failed start left no process and no socket.
func wantNothing(t *testing.T, l vmm.Launch) {
	t.Helper()
	left, err := proc.FindByArg(supervisor.Token(l.ID))
	if err != nil || len(left) > 0 {
		t.Errorf("processes %v are left, error %v", left, err)
	}
	for _, name := range []string{l.Files.API, l.Files.Agent} {
		if _, err := os.Stat(filepath.Join(l.Dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	wantNoJail(t, l)
}

// testCancelled cancels the start at different times.
func testCancelled(t *testing.T, b bench) {
	for _, after := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
		l := b.launch(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		m, err := newDriver(t).Start(ctx, l)
		cancel()
		if err != nil { // otherwise it was quicker than we
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %v: %v", after, err)
			}
			wantNothing(t, l)
		} else if err := m.Kill(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}

// testManyDevices gives the VM all that a launch can have.
func testManyDevices(t *testing.T, b bench) {
	if len(b.taps) == 0 {
		t.Skip("MVM_TEST_TAPS names no tap device")
	}
	l := b.launch(t)
	l.VCPUs, l.PCI = 2, true
	l.NICs = []vmm.NIC{{ID: "eth0", Tap: b.taps[0], MAC: "02:fc:00:00:00:01"}}
	for _, id := range []string{"vol-a", "vol-b"} {
		d := vmm.Disk{ID: id, Path: filepath.Join(t.TempDir(), id), Format: "raw", ReadOnly: id == "vol-b", Writeback: true}
		if err := os.WriteFile(d.Path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		l.Disks = append(l.Disks, d)
	}
	l.CPUTemplate = json.RawMessage(`{"kvm_capabilities": [], "cpuid_modifiers": [], "msr_modifiers": []}`)
	v := b.start(t, l)
	v.shows(t, "3 disks, 1 interfaces")
	c := NewClient(v.Handle().APISocket)
	if err := c.UpdateNetwork(t.Context(), NetworkUpdate{ID: "eth0", RX: limiter, TX: limiter}); err != nil {
		t.Error(err)
	}
	if err := c.UpdateDrive(t.Context(), DriveUpdate{ID: "vol_a", Limiter: limiter}); err != nil {
		t.Error(err)
	}
	if err := v.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.wantEnd(t, 0, "")
}

// testDevices sends what the API has for a running VM without such devices.
func testDevices(t *testing.T, b bench) {
	l := b.launch(t)
	v := b.start(t, l)
	c := NewClient(v.Handle().APISocket)
	ctx := t.Context()
	for name, tt := range map[string]struct {
		err  error
		says string // "" succeeds
	}{
		"metrics":        {c.FlushMetrics(ctx), ""},
		"drive":          {c.UpdateDrive(ctx, DriveUpdate{ID: "rootfs", Path: diskName(l.Dir, l.Disks[0])}), ""},
		"drive's limit":  {c.UpdateDrive(ctx, DriveUpdate{ID: "rootfs", Limiter: limiter}), ""},
		"other drive":    {c.UpdateDrive(ctx, DriveUpdate{ID: "none"}), "Device not found"},
		"other NIC":      {c.UpdateNetwork(ctx, NetworkUpdate{ID: "none"}), "Device not found"},
		"taken drive":    {c.AddDrive(ctx, Drive{ID: "rootfs", Path: diskName(l.Dir, l.Disks[0])}), "Device ID in use"},
		"new drive":      {c.AddDrive(ctx, Drive{ID: "more", Path: diskName(l.Dir, l.Disks[0])}), ""},
		"balloon":        {c.SetBalloon(ctx, 1), "Device not found"},
		"metadata":       {c.SetMetadata(ctx, json.RawMessage(`{}`)), "not initialized"},
		"logger":         {c.SetLogger(ctx, Logger{Level: "Info"}), "not supported after"},
		"snapshot":       {c.CreateSnapshot(ctx, SnapshotCreate{State: "/x/s", Mem: "/x/m"}), "unavailable while running"},
		"load":           {c.LoadSnapshot(ctx, SnapshotLoad{State: "/x/s", Mem: MemBackend{Type: "File", Path: "/x/m"}}), "not supported after"},
		"no such path":   {c.do(ctx, "PUT", "/nothing", action{}, nil), "Invalid request method and/or path"},
		"no body":        {c.do(ctx, "PATCH", "/vm", nil, nil), "Empty PATCH request."},
		"unknown field":  {c.do(ctx, "PATCH", "/vm", map[string]string{"state": "Paused", "x": ""}, nil), "deserializing"},
		"unknown word":   {c.do(ctx, "PATCH", "/vm", vmState{"paused"}, nil), "deserializing"},
		"id with hyphen": {c.do(ctx, "PATCH", "/drives/a-b", map[string]string{"drive_id": "a-b"}, nil), "alphanumeric"},
	} {
		if b.lenient() && (name == "no such path" || name == "unknown field" || name == "unknown word") {
			t.Logf("not checked, the reference is not here: %s", name)
			continue
		}
		if tt.says == "" && tt.err != nil || tt.says != "" && (tt.err == nil || !strings.Contains(tt.err.Error(), tt.says)) {
			t.Errorf("%s: %v, want %q", name, tt.err, tt.says)
		}
	}
	if version, err := c.Version(ctx); err != nil || version != fakevmm.Version {
		t.Errorf("version %q, error %v", version, err)
	}
	raw, err := c.FullConfig(ctx)
	if err != nil || !strings.Contains(string(raw), `"boot-source"`) {
		t.Errorf("configuration %s, error %v", raw, err)
	}
}

func TestProbe(t *testing.T) {
	good := func() host.KVM { return host.KVM{Usable: true} }
	host1 := &run.Host{}
	cache := filepath.Join(t.TempDir(), "version.json")
	o := Options{Binary: fakevmm.Install(t), Runner: host1, CheckKVM: good, Cache: cache}
	for range 2 {
		p := New(o).Probe(t.Context())
		if !p.Usable || p.Version != fakevmm.Version || p.Path != o.Binary || p.Accel != "kvm" || len(p.Problems) > 0 {
			t.Errorf("got %+v", p)
		}
	}
	if host1.Started() != 1 {
		t.Errorf("%d processes for two probes", host1.Started())
	}
	o.CheckKVM = func() host.KVM { return host.KVM{Problem: host.Problem{What: "no KVM", Hint: "get some"}} }
	p := New(o).Probe(t.Context())
	if p.Usable || p.Accel != "" || p.Version != fakevmm.Version || len(p.Problems) != 1 || !p.Problems[0].Fatal || p.Problems[0].Hint == "" {
		t.Errorf("without KVM: %+v", p)
	}
	for _, script := range []string{"echo Firecracker v1.12.1", "echo QEMU", "exit 3"} {
		other := filepath.Join(t.TempDir(), "other")
		if err := os.WriteFile(other, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		p := New(Options{Binary: other, Runner: host1, CheckKVM: good, Cache: cache}).Probe(t.Context())
		if p.Usable || len(p.Problems) != 1 || p.Problems[0].Hint == "" {
			t.Errorf("%s: %+v", script, p)
		}
	}
}
