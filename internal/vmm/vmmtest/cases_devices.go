package vmmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/vmm"
)

// fails checks an error for its kind and a hint.
func fails(t *testing.T, what string, err error, kind mvm.Kind) {
	t.Helper()
	if !errors.Is(err, kind) || mvm.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v (kind %q, hint %q), want one line, %q and a hint", what, err, mvm.KindOf(err), mvm.HintOf(err), kind)
	}
}

// kill ends a VM.
func kill(t *testing.T, m vmm.Machine) {
	t.Helper()
	if err := m.Kill(within(t), 0); err != nil {
		t.Fatalf("Kill: %v", err)
	}
}

// typeLine types on the console, as a viewer does.
func typeLine(t *testing.T, l vmm.Launch, line string) {
	t.Helper()
	conn, err := fsx.DialUnix(within(t), filepath.Join(l.Dir, l.Files.ConsoleSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		t.Error(err)
	}
}

// volume makes a raw disk.
func volume(t *testing.T, id string) vmm.Disk {
	t.Helper()
	d := vmm.Disk{ID: id, Path: filepath.Join(t.TempDir(), id+".raw"), Format: "raw"}
	if err := os.WriteFile(d.Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

// A directory may have a name that is longer than a socket's can be.
func testLongPath(t *testing.T, f Fixture) {
	l := f.Launch(t)
	l.Dir = filepath.Join(l.Dir, strings.Repeat("d", 120))
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m := start(t, f, l)
	console(t, l, f.Hello)
	ask(t, f, l, "count", "count 1")
	other, err := f.Driver.Attach(within(t), copyOf(t, m.Handle()))
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	wantState(t, other, vmm.StateRunning)
	kill(t, other)
	wantNothingLeft(t, l.ID, l.Dir)
}

func testDiskHotplug(t *testing.T, f Fixture) {
	l := f.Launch(t)
	l.PCI = true
	if len(l.Disks) == 0 {
		l.Disks = []vmm.Disk{volume(t, "rootfs")}
	}
	if !f.Driver.Probe(within(t)).Capabilities.DiskHotplug {
		t.Skip("this driver plugs nothing")
	}
	m := start(t, f, l)
	console(t, l, f.Hello)
	h := m.(vmm.DiskHotplugger)
	disk := volume(t, "vol-1")
	missing := vmm.Disk{ID: "vol-2", Path: disk.Path + "x", Format: "raw"}
	fails(t, "a disk that is not there", h.AttachDisk(within(t), missing), mvm.ErrUnavailable)
	fails(t, "an id that is none", h.AttachDisk(within(t), vmm.Disk{ID: "a/b", Path: disk.Path, Format: "raw"}), mvm.ErrInvalid)
	fails(t, "a relative path", h.AttachDisk(within(t), vmm.Disk{ID: "vol-2", Path: "v", Format: "raw"}), mvm.ErrInvalid)
	fails(t, "detach what is not there", h.DetachDisk(within(t), "vol-1"), mvm.ErrNotFound)
	fails(t, "detach the root disk", h.DetachDisk(within(t), l.Disks[0].ID), mvm.ErrConflict)
	ask(t, f, l, "disks", "disks "+strconv.Itoa(len(l.Disks)))
	for i := range 2 {
		err := h.AttachDisk(within(t), disk)
		if i > 0 && errors.Is(err, mvm.ErrUnsupported) { // better than a disk that the guest never sees
			fails(t, "attach after a detach", err, mvm.ErrUnsupported)
			ask(t, f, l, "disks", "disks "+strconv.Itoa(len(l.Disks)))
			break
		}
		if err != nil {
			t.Fatalf("AttachDisk: %v", err)
		}
		ask(t, f, l, "disks", "disks "+strconv.Itoa(len(l.Disks)+1))
		fails(t, "attach it again", h.AttachDisk(within(t), disk), mvm.ErrExists)
		if f.Answers {
			second := volume(t, "vol-5")
			if err := h.AttachDisk(within(t), second); err != nil {
				t.Fatalf("AttachDisk beside another: %v", err)
			}
			ask(t, f, l, "disks", "disks "+strconv.Itoa(len(l.Disks)+2))
			ask(t, f, l, "drop", "dropped")
			if err := h.DetachDisk(within(t), second.ID); err != nil {
				t.Fatalf("DetachDisk of one of two: %v", err)
			}
		}
		ask(t, f, l, "drop", "dropped")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		err = h.DetachDisk(ctx, disk.ID)
		cancel()
		if errors.Is(err, mvm.ErrBusy) && !f.Answers { // its guest does not listen
			fails(t, "attach what is kept", h.AttachDisk(within(t), disk), mvm.ErrExists)
			break
		}
		if err != nil {
			t.Fatalf("DetachDisk: %v", err)
		}
	}
	fails(t, "detach it twice", h.DetachDisk(within(t), "vol-3"), mvm.ErrNotFound)
	if data, err := os.ReadFile(disk.Path); len(data) != 1<<20 || err != nil {
		t.Errorf("the disk has %d bytes after all, %v", len(data), err)
	}
	kill(t, m)
	if err := h.AttachDisk(within(t), volume(t, "vol-4")); err == nil {
		t.Error("AttachDisk after the end succeeds")
	}
}

func testBalloon(t *testing.T, f Fixture) {
	if !f.Driver.Probe(within(t)).Capabilities.Balloon {
		t.Skip("this driver has no balloon")
	}
	l := f.Launch(t)
	l.Balloon = &vmm.Balloon{MiB: 1, DeflateOnOOM: true, StatsSec: 1}
	m := start(t, f, l)
	console(t, l, f.Hello)
	b := m.(vmm.Ballooner)
	for _, mib := range []int{8, 0, 4} {
		if err := b.SetBalloon(within(t), mib); err != nil {
			t.Fatalf("SetBalloon: %v", err)
		}
		if !f.Answers && !f.InMemory { // nothing in its guest drives the balloon
			continue
		}
		eventually(t, "a balloon of "+strconv.Itoa(mib)+" MiB, with statistics", func() bool {
			s, err := b.BalloonStats(within(t))
			if err != nil || s.TargetMiB != mib {
				t.Fatalf("BalloonStats = %+v, %v, want the target %d", s, err, mib)
			}
			return s.ActualMiB == mib && s.TotalBytes > 0 && s.FreeBytes > 0 && s.AvailableBytes > 0
		})
	}
	fails(t, "a balloon below zero", b.SetBalloon(within(t), -1), mvm.ErrInvalid)
	fails(t, "a balloon larger than the VM", b.SetBalloon(within(t), l.MemMiB+1), mvm.ErrInvalid)
	kill(t, m)
	if _, err := b.BalloonStats(within(t)); err == nil {
		t.Error("BalloonStats after the end succeeds")
	}

	l = f.Launch(t)
	l.Balloon = &vmm.Balloon{}
	quiet := start(t, f, l).(vmm.Ballooner)
	got, err := quiet.BalloonStats(within(t))
	want := vmm.BalloonStats{ActualMiB: -1, FreeBytes: -1, TotalBytes: -1, AvailableBytes: -1}
	if got.ActualMiB == 0 {
		want.ActualMiB = 0 // QEMU knows it all the same
	}
	if err != nil || got != want {
		t.Errorf("BalloonStats without statistics = %+v, %v, want %+v", got, err, want)
	}
	none := start(t, f, f.Launch(t)).(vmm.Ballooner)
	fails(t, "SetBalloon without one", none.SetBalloon(within(t), 1), mvm.ErrUnsupported)
	_, err = none.BalloonStats(within(t))
	fails(t, "BalloonStats without one", err, mvm.ErrUnsupported)
	l.Balloon = &vmm.Balloon{MiB: l.MemMiB + 1}
	_, err = f.Driver.Render(l)
	fails(t, "a launch with a balloon larger than the VM", err, mvm.ErrInvalid)
}

var someLimit = vmm.RateLimit{BytesPerSec: 1 << 20, OpsPerSec: 100, BurstBytes: 1 << 16}

// limits are what can be asked for, and what cannot.
var (
	goodLimits = []vmm.RateLimit{someLimit, {}, {OpsPerSec: 1}, {BytesPerSec: 1}}
	badLimits  = []vmm.RateLimit{{BytesPerSec: -1}, {OpsPerSec: -1}, {BytesPerSec: 1, BurstBytes: -1}, {BurstBytes: 1}}
)

func testDiskLimits(t *testing.T, f Fixture) {
	if !f.Driver.Probe(within(t)).Capabilities.RateLimit {
		t.Skip("this driver limits no disk")
	}
	l := f.Launch(t)
	l.Disks = []vmm.Disk{volume(t, "rootfs")}
	l.Disks[0].Limit = someLimit
	m := start(t, f, l)
	r := m.(vmm.RateLimiter)
	for _, limit := range goodLimits {
		if err := r.LimitDisk(within(t), "rootfs", limit); err != nil {
			t.Errorf("LimitDisk to %+v: %v", limit, err)
		}
	}
	for _, bad := range badLimits {
		fails(t, "LimitDisk to nonsense", r.LimitDisk(within(t), "rootfs", bad), mvm.ErrInvalid)
		other := f.Launch(t)
		other.Disks = []vmm.Disk{l.Disks[0]}
		other.Disks[0].Limit = bad
		_, err := f.Driver.Render(other)
		fails(t, "a launch with nonsense", err, mvm.ErrInvalid)
	}
	fails(t, "limit a disk that is not there", r.LimitDisk(within(t), "vol-1", someLimit), mvm.ErrNotFound)
	kill(t, m)
	if err := r.LimitDisk(within(t), "rootfs", someLimit); err == nil {
		t.Error("LimitDisk after the end succeeds")
	}
}

func testNICLimits(t *testing.T, f Fixture) {
	if !f.Driver.Probe(within(t)).Capabilities.NICLimit || len(f.Taps) < 2 {
		t.Skip("this driver limits no interface, or the fixture has no tap for it")
	}
	l := f.Launch(t)
	withNIC(f, &l, 0)
	l.NICs[0].RX, l.NICs[0].TX = someLimit, vmm.RateLimit{OpsPerSec: 1}
	m := start(t, f, l)
	r := m.(vmm.NICLimiter)
	for _, limit := range goodLimits {
		if err := r.LimitNIC(within(t), "eth0", limit, someLimit); err != nil {
			t.Errorf("LimitNIC to %+v: %v", limit, err)
		}
	}
	for _, bad := range badLimits {
		fails(t, "LimitNIC to nonsense", r.LimitNIC(within(t), "eth0", someLimit, bad), mvm.ErrInvalid)
		other := f.Launch(t)
		withNIC(f, &other, 0)
		other.NICs[0].TX = bad
		_, err := f.Driver.Render(other)
		fails(t, "a launch with nonsense", err, mvm.ErrInvalid)
	}
	fails(t, "limit an interface that is not there", r.LimitNIC(within(t), "eth9", someLimit, someLimit), mvm.ErrNotFound)
	kill(t, m)
	if err := r.LimitNIC(within(t), "eth0", someLimit, someLimit); err == nil {
		t.Error("LimitNIC after the end succeeds")
	}
}

func testMetadata(t *testing.T, f Fixture) {
	if !f.Driver.Probe(within(t)).Capabilities.Metadata || len(f.Taps) < 2 {
		t.Skip("this driver has no metadata service, or the fixture no tap for it")
	}
	l := f.Launch(t)
	withNIC(f, &l, 0)
	l.Metadata = json.RawMessage(`{"latest": {"id": "i-1", "n": [1, null]}}`)
	m := start(t, f, l)
	h := m.(vmm.MetadataHolder)
	want := func(want string) {
		t.Helper()
		got, err := h.Metadata(within(t))
		if d := cmp.Diff(decoded(t, json.RawMessage(want)), decoded(t, got)); err != nil || d != "" {
			t.Errorf("Metadata: %v, differs:\n%s", err, d)
		}
	}
	want(string(l.Metadata))
	console(t, l, f.Hello)
	ask(t, f, l, "metadata", `metadata {"latest":{"id":"i-1","n":[1,null]}}`)
	if err := h.SetMetadata(within(t), json.RawMessage(`{"other":true}`)); err != nil {
		t.Errorf("SetMetadata: %v", err)
	}
	want(`{"other":true}`)
	ask(t, f, l, "metadata", `metadata {"other":true}`)
	large, err := json.Marshal(map[string]string{"a": strings.Repeat("x", 60000)})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []json.RawMessage{nil, []byte(`[]`), []byte(`null`), []byte(`{`), large} {
		fails(t, "SetMetadata to nonsense", h.SetMetadata(within(t), bad), mvm.ErrInvalid)
		if bad != nil {
			other := l
			other.Metadata = bad
			_, err := f.Driver.Render(other)
			fails(t, "a launch with nonsense", err, mvm.ErrInvalid)
		}
	}
	want(`{"other":true}`)
	kill(t, m)
	none := start(t, f, f.Launch(t)).(vmm.MetadataHolder)
	fails(t, "SetMetadata without the service", none.SetMetadata(within(t), json.RawMessage(`{}`)), mvm.ErrUnsupported)
	_, err = none.Metadata(within(t))
	fails(t, "Metadata without the service", err, mvm.ErrUnsupported)
}

func decoded(t *testing.T, data json.RawMessage) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Errorf("%q is no JSON: %v", data, err)
	}
	return v
}

func testMetrics(t *testing.T, f Fixture) {
	if !f.Driver.Probe(within(t)).Capabilities.Metrics {
		t.Skip("this driver has no metrics")
	}
	l := f.Launch(t)
	l.Metrics = true
	m := start(t, f, l)
	metered := m.(vmm.Metered)
	path := filepath.Join(l.Dir, l.Files.Metrics)
	lines := 0
	for range 3 {
		before := lines
		if err := metered.FlushMetrics(within(t)); err != nil {
			t.Fatalf("FlushMetrics: %v", err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
		if lines = len(whole); lines <= before {
			t.Errorf("%d lines after a flush, %d before", lines, before)
		}
		for _, line := range whole {
			if !json.Valid(line) {
				t.Errorf("a line is no JSON: %q", line)
			}
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o600 {
		t.Errorf("the metrics are %v, %v, want mode 0600", fi, err)
	}
	kill(t, m)
	l = f.Launch(t)
	l.Metrics = false
	none := start(t, f, l).(vmm.Metered)
	fails(t, "FlushMetrics without metrics", none.FlushMetrics(within(t)), mvm.ErrUnsupported)
}

// hugePool is where the kernel says how many pages of 2 MiB are free.
const hugePool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"

// A pool that is too small is said to be; the VM would end on its first use of it.
func testHugePages(t *testing.T, f Fixture) {
	if !f.Driver.Probe(within(t)).Capabilities.HugePages || f.InMemory {
		t.Skip("this driver uses no pool of huge pages")
	}
	l := f.Launch(t)
	l.HugePages = true
	data, err := os.ReadFile(hugePool)
	free, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || free < l.MemMiB/2 {
		m, err := f.Driver.Start(within(t), l)
		if err == nil {
			endWithTest(t, m)
		}
		fails(t, "Start with too few huge pages", err, mvm.ErrUnavailable)
		wantNothingLeft(t, l.ID, l.Dir)
		return
	}
	m := start(t, f, l)
	console(t, l, f.Hello)
	if s, ok := m.(vmm.Snapshotter); ok {
		pause(t, m)
		if err := s.Snapshot(within(t), filesIn(t)); err != nil && !errors.Is(err, mvm.ErrUnsupported) {
			t.Errorf("Snapshot: %v, want none or ErrUnsupported", err)
		}
	}
}
