package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// snapshotter skips the test for a driver that writes no snapshots, of which
// testCapabilities sees that it says so.
func snapshotter(t *testing.T, f Fixture) {
	if !f.Driver.Probe(within(t)).Capabilities.Snapshot {
		t.Skip("this driver takes no snapshots")
	}
}

// withNIC gives a launch an interface, where the fixture has taps: the nth.
func withNIC(f Fixture, l *vmm.Launch, n int) {
	if len(f.Taps) >= 2 {
		l.NICs = []vmm.NIC{{ID: "eth0", Tap: f.Taps[n%len(f.Taps)], MAC: "02:fc:00:00:00:01"}}
	}
}

// filesIn names the files of a snapshot in a new directory.
func filesIn(t *testing.T) vmm.SnapshotFiles {
	dir := t.TempDir()
	return vmm.SnapshotFiles{State: filepath.Join(dir, "state"), Mem: filepath.Join(dir, "mem")}
}

// pausedVM starts a VM that can be written, and pauses it when its guest is up.
func pausedVM(t *testing.T, f Fixture, l vmm.Launch) vmm.Machine {
	t.Helper()
	m := start(t, f, l)
	console(t, l, f.Hello)
	pause(t, m)
	return m
}

func pause(t *testing.T, m vmm.Machine) {
	t.Helper()
	if err := m.(vmm.Pauser).Pause(within(t)); err != nil {
		t.Fatalf("Pause: %v", err)
	}
}

func resume(t *testing.T, m vmm.Machine) {
	t.Helper()
	if err := m.(vmm.Pauser).Resume(within(t)); err != nil {
		t.Fatalf("Resume: %v", err)
	}
}

// snapshot writes a paused VM and looks at what was written.
func snapshot(t *testing.T, m vmm.Machine, to vmm.SnapshotFiles) {
	t.Helper()
	if err := m.(vmm.Snapshotter).Snapshot(within(t), to); err != nil {
		t.Fatalf("Snapshot: %v (%s)", err, mvm.HintOf(err))
	}
	wantState(t, m, vmm.StatePaused)
	for _, path := range []string{to.State, to.Mem} {
		if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o600 || fi.Size() == 0 {
			t.Errorf("%s: %v, %v, want a file of mode 0600 that has something", path, fi, err)
		}
	}
	wantOnly(t, filepath.Dir(to.State), filepath.Base(to.State), filepath.Base(to.Mem))
}

// wantOnly fails the test when a directory has other files.
func wantOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}
	slices.Sort(names)
	if err != nil || !slices.Equal(have, names) {
		t.Errorf("%s has %q, %v, want %q", dir, have, err, names)
	}
}

// again is the launch of another VM that continues a snapshot of l's: it has an id,
// a directory and disks of its own.
func again(t *testing.T, f Fixture, l vmm.Launch, n int, from vmm.SnapshotFiles, run bool) vmm.Launch {
	t.Helper()
	other := f.Launch(t)
	if len(l.NICs) > 0 {
		withNIC(f, &other, n)
	}
	other.PCI, other.Balloon, other.Metadata, other.TrackDirty, other.Metrics = l.PCI, l.Balloon, l.Metadata, l.TrackDirty, l.Metrics
	other.Kernel, other.Initrd, other.Cmdline = "", "", ""
	other.Restore = &vmm.Restore{State: from.State, Mem: from.Mem, Resume: run}
	return other
}

// A VM that was written goes on, and so do others in its place, in directories of
// their own, at the same time.
func testSnapshot(t *testing.T, f Fixture) {
	snapshotter(t, f)
	l := f.Launch(t)
	withNIC(f, &l, 0)
	m := start(t, f, l)
	console(t, l, f.Hello)
	ask(t, f, l, "count", "count 1")
	pause(t, m)
	files := filesIn(t)
	snapshot(t, m, files)
	resume(t, m)
	wantState(t, m, vmm.StateRunning)
	ask(t, f, l, "count", "count 2")

	running := again(t, f, l, 1, files, true)
	b := start(t, f, running)
	wantState(t, b, vmm.StateRunning)
	waiting := again(t, f, l, 2, files, false)
	if len(f.Taps) > 0 && len(f.Taps) < 3 {
		if err := b.Kill(within(t), 0); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, f, waiting)
	wantState(t, c, vmm.StatePaused)
	resume(t, c)
	wantState(t, c, vmm.StateRunning)
	if len(f.Taps) == 0 || len(f.Taps) >= 3 {
		ask(t, f, running, "count", "count 2") // what the first counted since is not theirs
	}
	ask(t, f, waiting, "count", "count 2")
	ask(t, f, l, "count", "count 3")
	for _, other := range []vmm.Launch{running, waiting} {
		if text := readConsole(other); strings.Contains(text, strings.TrimSpace(f.Hello)) {
			t.Errorf("a VM that was loaded boots: %q", text)
		}
	}
	// One that was loaded can be written and loaded in turn.
	pause(t, c)
	next := filesIn(t)
	snapshot(t, c, next)
	if err := c.Kill(within(t), 0); err != nil {
		t.Fatal(err)
	}
	last := again(t, f, l, 2, next, true)
	d := start(t, f, last)
	ask(t, f, last, "count", "count 3")
	if err := d.Shutdown(within(t)); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// Nothing is written over, and nothing is written of what cannot be.
func testSnapshotRefuses(t *testing.T, f Fixture) {
	snapshotter(t, f)
	l := f.Launch(t)
	m := pausedVM(t, f, l)
	s := m.(vmm.Snapshotter)
	old := []byte("precious")
	for name, c := range map[string]struct {
		taken  string // file that is there
		change func(*vmm.SnapshotFiles)
		kind   mvm.Kind
	}{
		"the state exists":      {"state", nil, mvm.ErrExists},
		"the memory exists":     {"mem", nil, mvm.ErrExists},
		"one file for both":     {"", func(to *vmm.SnapshotFiles) { to.Mem = to.State }, mvm.ErrInvalid},
		"a name that is not":    {"", func(to *vmm.SnapshotFiles) { to.State = "state" }, mvm.ErrInvalid},
		"no directory":          {"", func(to *vmm.SnapshotFiles) { to.Mem = filepath.Join(to.Mem, "x", "mem") }, mvm.ErrUnavailable},
		"changes are not known": {"", func(to *vmm.SnapshotFiles) { to.Diff = true }, mvm.ErrUnsupported},
	} {
		to := filesIn(t)
		dir := filepath.Dir(to.State)
		var left []string
		if c.taken != "" {
			left = []string{c.taken}
			if err := os.WriteFile(filepath.Join(dir, c.taken), old, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c.change != nil {
			c.change(&to)
		}
		if err := s.Snapshot(within(t), to); !errors.Is(err, c.kind) || mvm.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v (hint %q), want %q and a hint", name, err, mvm.HintOf(err), c.kind)
		}
		wantOnly(t, dir, left...)
		if c.taken != "" {
			if data, err := os.ReadFile(filepath.Join(dir, c.taken)); err != nil || !bytes.Equal(data, old) {
				t.Errorf("%s: it has %q now, %v", name, data, err)
			}
		}
	}
	resume(t, m)
	to := filesIn(t)
	if err := s.Snapshot(within(t), to); !errors.Is(err, mvm.ErrConflict) || mvm.HintOf(err) == "" {
		t.Errorf("Snapshot of a VM that runs: %v, want ErrConflict with a hint", err)
	}
	wantState(t, m, vmm.StateRunning)
	if err := m.Kill(within(t), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(within(t), to); err == nil {
		t.Error("Snapshot after the end succeeds")
	}
	wantOnly(t, filepath.Dir(to.State))
}

// A snapshot that is cancelled leaves nothing, and the VM goes on.
func testSnapshotCancelled(t *testing.T, f Fixture) {
	snapshotter(t, f)
	l := f.Launch(t)
	m := pausedVM(t, f, l)
	for _, after := range []time.Duration{0, 1, 5, 20, 100} {
		to := filesIn(t)
		ctx, cancel := context.WithCancel(t.Context())
		if after == 0 {
			cancel()
		}
		timer := time.AfterFunc(after*time.Millisecond, cancel)
		err := m.(vmm.Snapshotter).Snapshot(ctx, to)
		timer.Stop()
		cancel()
		switch {
		case err == nil && after > 0:
			wantOnly(t, filepath.Dir(to.State), "mem", "state")
		case !errors.Is(err, context.Canceled):
			t.Errorf("Snapshot cancelled after %d ms = %v", after, err)
		default:
			wantOnly(t, filepath.Dir(to.State))
		}
	}
	resume(t, m)
	wantState(t, m, vmm.StateRunning)
	ask(t, f, l, "count", "count 1")
}

// A full disk is said to be full, and has nothing of the snapshot.
func testSnapshotFullDisk(t *testing.T, f Fixture) {
	snapshotter(t, f)
	if f.InMemory {
		t.Skip("the fake's memory is a hole")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=4k"); err != nil {
		t.Skipf("root: a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l := f.Launch(t)
	m := pausedVM(t, f, l)
	ok := filesIn(t)
	for _, to := range []vmm.SnapshotFiles{
		{State: ok.State, Mem: filepath.Join(disk, "mem")},
		{State: filepath.Join(disk, "state"), Mem: filepath.Join(disk, "mem")},
	} {
		if err := m.(vmm.Snapshotter).Snapshot(within(t), to); !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
			t.Errorf("Snapshot to a full disk: %v (hint %q), want ErrUnavailable and a hint", err, mvm.HintOf(err))
		}
		wantOnly(t, disk)
		wantOnly(t, filepath.Dir(ok.State))
	}
	snapshot(t, m, ok)
	resume(t, m)
	ask(t, f, l, "count", "count 1")
}

// What changed since a snapshot, put on top of it, is a snapshot.
func testSnapshotDiff(t *testing.T, f Fixture) {
	snapshotter(t, f)
	l := f.Launch(t)
	l.TrackDirty = true
	if _, err := f.Driver.Render(l); errors.Is(err, mvm.ErrUnsupported) {
		t.Skip("this driver takes no snapshots of what changed")
	}
	m := start(t, f, l)
	console(t, l, f.Hello)
	ask(t, f, l, "count", "count 1")
	pause(t, m)
	full, diff := filesIn(t), filesIn(t)
	snapshot(t, m, full)
	resume(t, m)
	ask(t, f, l, "count", "count 2")
	pause(t, m)
	diff.Diff = true
	snapshot(t, m, diff)
	if a, b := used(t, full.Mem), used(t, diff.Mem); !f.InMemory && b >= a {
		t.Errorf("what changed takes %d bytes, all takes %d", b, a)
	}
	onto(t, full.Mem, diff.Mem)
	resume(t, m)
	ask(t, f, l, "count", "count 3")
	other := again(t, f, l, 1, vmm.SnapshotFiles{State: diff.State, Mem: full.Mem}, true)
	start(t, f, other)
	ask(t, f, other, "count", "count 3")
}

// used tells how much space a file takes.
func used(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// onto writes what a sparse file has over another.
func onto(t *testing.T, base, layer string) {
	t.Helper()
	src, err := os.Open(layer)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(base, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for end := int64(0); ; {
		begin, err := unix.Seek(int(src.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err == nil {
			end, err = unix.Seek(int(src.Fd()), begin, unix.SEEK_HOLE)
		}
		if err == nil {
			_, err = io.Copy(io.NewOffsetWriter(dst, begin), io.NewSectionReader(src, begin, end-begin))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is no snapshot, or not all of one, is refused, and nothing is left.
func testLoadRefuses(t *testing.T, f Fixture) {
	snapshotter(t, f)
	l := f.Launch(t)
	m := pausedVM(t, f, l)
	files := filesIn(t)
	snapshot(t, m, files)
	if err := m.Kill(within(t), 0); err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(files.State)
	if err != nil {
		t.Fatal(err)
	}
	file := func(data []byte) string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	damaged := bytes.Clone(state)
	damaged[len(damaged)/2] ^= 0xff
	for _, c := range []struct {
		name   string
		change func(*vmm.Launch)
		kind   mvm.Kind
	}{
		{"no state", func(l *vmm.Launch) { l.Restore.State += "x" }, mvm.ErrUnavailable},
		{"no memory", func(l *vmm.Launch) { l.Restore.Mem += "x" }, mvm.ErrUnavailable},
		{"empty state", func(l *vmm.Launch) { l.Restore.State = file(nil) }, mvm.ErrBroken},
		{"truncated state", func(l *vmm.Launch) { l.Restore.State = file(state[:len(state)/2]) }, mvm.ErrBroken},
		{"damaged state", func(l *vmm.Launch) { l.Restore.State = file(damaged) }, mvm.ErrBroken},
		{"foreign state", func(l *vmm.Launch) { l.Restore.State = file([]byte(strings.Repeat("foreign\n", 4096))) }, mvm.ErrBroken},
		{"truncated memory", func(l *vmm.Launch) { l.Restore.Mem = file(make([]byte, 1<<20)) }, mvm.ErrBroken},
		{"a directory", func(l *vmm.Launch) { l.Restore.State = t.TempDir() }, mvm.ErrBroken},
		{"another disk", func(l *vmm.Launch) {
			l.Disks = append(slices.Clone(l.Disks), vmm.Disk{ID: "vol-x", Path: file(make([]byte, 1<<20)), Format: "raw"})
		}, mvm.ErrConflict},
	} {
		if c.name == "damaged state" && f.InMemory {
			continue // it has no checksum
		}
		t.Run(c.name, func(t *testing.T) {
			other := again(t, f, l, 1, files, true)
			c.change(&other)
			m, err := f.Driver.Start(within(t), other)
			if err == nil {
				endWithTest(t, m)
				t.Fatal("Start succeeds")
			}
			if !errors.Is(err, c.kind) || mvm.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("Start: %v (kind %q, hint %q), want one line, %q and a hint", err, mvm.KindOf(err), mvm.HintOf(err), c.kind)
			}
			wantNothingLeft(t, other.ID, other.Dir)
		})
	}
	start(t, f, again(t, f, l, 1, files, true)) // all the files are as they were
}

// ask types a line on the console, where the guest answers, and waits for the answer.
func ask(t *testing.T, f Fixture, l vmm.Launch, line, answer string) {
	t.Helper()
	if !f.Answers {
		return
	}
	before := len(readConsole(l)) // the same may have been answered earlier
	typeLine(t, l, line)
	eventually(t, "answer to "+line+": "+answer, func() bool {
		all := readConsole(l)
		return len(all) > before && strings.Contains(all[before:], answer)
	})
}

func readConsole(l vmm.Launch) string {
	data, err := os.ReadFile(filepath.Join(l.Dir, l.Files.Console))
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(data)
}
