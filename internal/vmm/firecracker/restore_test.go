package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// testRestore sees that a VM that was loaded is what its launch asks for, with a
// channel of its own, while the one that was written runs on.
func testRestore(t *testing.T, b bench) {
	if len(b.taps) < 2 {
		t.Skip("MVM_TEST_TAPS names no two tap devices")
	}
	l := b.launch(t)
	l.NICs = []vmm.NIC{{ID: "eth0", Tap: b.taps[0], MAC: "02:fc:00:00:00:01"}}
	l.Disks[0].Limit = vmm.RateLimit{BytesPerSec: 1 << 20}
	l.Metadata = json.RawMessage(`{"who":"first"}`)
	v := b.start(t, l)
	v.shows(t, "ready")
	v.echo(t)
	old, err := v.DialGuest(t.Context(), 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	from := v.write(t)

	other := b.launch(t)
	other.NICs = []vmm.NIC{{ID: "eth0", Tap: b.taps[1], MAC: "02:fc:00:00:00:01", TX: vmm.RateLimit{OpsPerSec: 1000}}}
	other.Metadata = json.RawMessage(`{"who":"second"}`)
	other.Restore = &from
	w := b.start(t, other)
	w.wantState(t, vmm.StateRunning)
	data, _ := os.ReadFile(filepath.Join(other.Dir, other.Files.Log+".1"))
	t.Logf("the guest's clock was left alone: %v", strings.Contains(string(data), "clock_realtime requested"))
	w.echo(t)
	if err := v.Machine.(vmm.Pauser).Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.echo(t)
	_ = old.SetDeadline(time.Now().Add(b.patience))
	if _, err := io.WriteString(old, "hello"); err == nil {
		if _, err = io.ReadFull(old, make([]byte, 5)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection from before the snapshot: %v, want its end", err)
		}
	}
	cfg, err := NewClient(w.Handle().APISocket).Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := cfg.NICs[0]; n.Tap != b.taps[1] || n.TX == nil || n.TX.Ops == nil || n.TX.Ops.Size != 1000 || cfg.Drives[0].Limiter != nil {
		t.Errorf("the VM that was loaded has the drive %+v and the interface %+v", cfg.Drives[0], n)
	}
	for who, m := range map[string]*vm{"first": v, "second": w} {
		data, err := m.Machine.(vmm.MetadataHolder).Metadata(t.Context())
		if err != nil || !strings.Contains(string(data), who) {
			t.Errorf("the metadata of the %s is %s, %v", who, data, err)
		}
		if _, err := os.Stat(filepath.Join(m.launch.Dir, metadataFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the metadata of the %s is left in a file: %v", who, err)
		}
	}
	if err := w.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantEnd(t, 0, "")
	v.wantState(t, vmm.StateRunning)
}

// write pauses a VM and writes a snapshot.
func (v *vm) write(t *testing.T) vmm.Restore {
	t.Helper()
	dir := t.TempDir()
	from := vmm.Restore{State: filepath.Join(dir, "state"), Mem: filepath.Join(dir, "mem"), Resume: true}
	if err := v.Machine.(vmm.Pauser).Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.Machine.(vmm.Snapshotter).Snapshot(t.Context(), vmm.SnapshotFiles{State: from.State, Mem: from.Mem}); err != nil {
		t.Fatal(err)
	}
	return from
}

// testUnlike sees that a snapshot of a VM with more than the launch is not loaded.
func testUnlike(t *testing.T, b bench) {
	l := b.launch(t)
	v := b.start(t, l)
	v.shows(t, "ready")
	from := v.write(t)
	if err := v.Kill(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*vmm.Launch)
		kind   mvm.Kind
	}{
		"an interface": {func(l *vmm.Launch) { l.NICs = []vmm.NIC{{ID: "eth0", Tap: "tap0", MAC: "02:fc:00:00:00:01"}} }, mvm.ErrConflict},
		"vCPUs":        {func(l *vmm.Launch) { l.VCPUs++ }, mvm.ErrConflict},
		"a balloon":    {func(l *vmm.Launch) { l.Balloon = &vmm.Balloon{} }, mvm.ErrConflict},
		"no channel":   {func(l *vmm.Launch) { l.Agent = false }, mvm.ErrConflict},
		"memory":       {func(l *vmm.Launch) { l.MemMiB++ }, mvm.ErrBroken},
		"no disk":      {func(l *vmm.Launch) { l.Disks = nil; _ = os.Remove(filepath.Join(l.Dir, "rootfs.raw")) }, mvm.ErrUnavailable},
	} {
		other := b.launch(t)
		other.Restore = &from
		tt.change(&other)
		if m, err := newDriver(t).Start(t.Context(), other); m != nil || !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v, %v (hint %q), want %q", name, m, err, mvm.HintOf(err), tt.kind)
		}
		wantNothing(t, other)
	}
}

// testNoClock loads a snapshot of a host that could not tell the time with it: the
// guest's clock is then left alone.
func testNoClock(t *testing.T, b bench) {
	if !b.fake {
		t.Skip("the host decides")
	}
	l := b.launch(t)
	l.Cmdline += " " + fakevmm.NoClockArg
	v := b.start(t, l)
	v.shows(t, "ready")
	from := v.write(t)
	other := b.launch(t)
	other.Restore = &from
	w := b.start(t, other)
	w.wantState(t, vmm.StateRunning)
	w.echo(t)
}

// testBounded fills metrics beyond their bound. Metrics and log are no files of
// Firecracker's.
func testBounded(t *testing.T, b bench) {
	l := b.launch(t)
	l.Logging, l.LogLevel, l.Metrics = true, "debug", true
	v := b.start(t, l)
	path := filepath.Join(l.Dir, l.Files.Metrics)
	for n := 0; ; n++ {
		if err := v.Machine.(vmm.Metered).FlushMetrics(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path + ".1"); err == nil {
			break
		}
		if n > 1000 {
			t.Fatal("the metrics are not moved away")
		}
	}
	for _, name := range []string{path, path + ".1"} {
		if fi, err := os.Stat(name); err != nil || fi.Size() > 1<<20 {
			t.Errorf("%s: %v, %v, want at most 1 MiB", name, fi, err)
		}
	}
	v.until(t, "requests in the log", func() bool {
		data, err := os.ReadFile(filepath.Join(l.Dir, l.Files.Log))
		return err == nil && strings.Contains(string(data), "FlushMetrics")
	})
	if err := v.Kill(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(l.Dir, "*"+pipeSuffix))
	if err != nil || len(left) > 0 {
		t.Errorf("left are %q, %v", left, err)
	}
}

// testOrphan sees that a VM goes on when its supervisor was killed, and that metrics
// which nobody takes are said to be.
func testOrphan(t *testing.T, b bench) {
	l := b.launch(t)
	v := b.start(t, l)
	v.shows(t, "ready")
	p, err := os.FindProcess(v.Handle().Supervisor.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	v.until(t, "the end of the supervisor", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return errors.Is(v.Machine.(vmm.Metered).FlushMetrics(ctx), context.DeadlineExceeded)
	})
	v.wantState(t, vmm.StateRunning)
	v.echo(t)
}

// A disk that is plugged in has, like those from the start, a name that a snapshot
// can be loaded with elsewhere.
func testHotplugged(t *testing.T, b bench) {
	l := b.launch(t)
	l.PCI = true
	v := b.start(t, l)
	v.shows(t, "ready")
	disk := vmm.Disk{ID: "vol-1", Path: filepath.Join(t.TempDir(), "v"), Format: "raw", Limit: vmm.RateLimit{OpsPerSec: 100}}
	if err := os.WriteFile(disk.Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := v.Machine.(vmm.DiskHotplugger).AttachDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	from := v.write(t)
	if err := v.Kill(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	other := b.launch(t)
	other.Restore, other.PCI = &from, true
	copied := disk
	copied.Path = filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(copied.Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	other.Disks = append(other.Disks, copied)
	w := b.start(t, other)
	if err := w.Machine.(vmm.DiskHotplugger).DetachDisk(t.Context(), disk.ID); err != nil {
		t.Error(err)
	}
}

func testNoHotplugByMMIO(t *testing.T, b bench) {
	l := b.launch(t)
	l.PCI = false
	v := b.start(t, l)
	h := v.Machine.(vmm.DiskHotplugger)
	disk := vmm.Disk{ID: "vol-1", Path: filepath.Join(t.TempDir(), "v"), Format: "raw"}
	if err := os.WriteFile(disk.Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before := names(t, l.Dir)
	for what, err := range map[string]error{"attach": h.AttachDisk(t.Context(), disk), "detach": h.DetachDisk(t.Context(), disk.ID)} {
		if !errors.Is(err, mvm.ErrUnsupported) || !strings.Contains(err.Error(), "PCI") || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q), want ErrUnsupported", what, err, mvm.HintOf(err))
		}
	}
	if d := cmp.Diff(before, names(t, l.Dir)); d != "" {
		t.Errorf("the VM's directory differs:\n%s", d)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// AsyncIO is taken back where the kernel has no io_uring, and the launch is not
// changed by that.
func TestWithoutAsync(t *testing.T) {
	l := vmm.Launch{Disks: []vmm.Disk{{ID: "a", AsyncIO: true}, {ID: "b"}}}
	got := withoutAsync(l)
	if got.Disks[0].AsyncIO != hasIOUring() || !l.Disks[0].AsyncIO {
		t.Errorf("got %+v of %+v", got.Disks, l.Disks)
	}
}

// A handle of an earlier version has no part of the driver's own.
func TestHandleWithoutExtra(t *testing.T) {
	m := &machine{handle: vmm.Handle{ID: "x"}}
	if err := m.FlushMetrics(t.Context()); !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}
