package api

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/vmm"
)

// A snapshot is loaded where the VMM, its version, the accelerator and the CPU are
// those that it was made with.
func TestFits(t *testing.T) {
	here := vmm.Probe{Version: "1.16.1", Accel: "kvm", Capabilities: vmm.Capabilities{Snapshot: true}}
	made := mvm.SnapshotItem{Hypervisor: "firecracker", VMMVersion: "1.16.1", Accel: "kvm", CPU: cpuDigest("kvm")}
	if err := fits(&made, here); err != nil {
		t.Errorf("where it was made: %v", err)
	}
	for name, tc := range map[string]struct {
		change func(*mvm.SnapshotItem, *vmm.Probe)
		says   string
	}{
		"no snapshots":     {func(_ *mvm.SnapshotItem, p *vmm.Probe) { p.Capabilities.Snapshot = false }, "cannot load a snapshot here"},
		"another version":  {func(s *mvm.SnapshotItem, _ *vmm.Probe) { s.VMMVersion = "1.15.0" }, "made by firecracker 1.15.0, and here is 1.16.1"},
		"an accelerator":   {func(_ *mvm.SnapshotItem, p *vmm.Probe) { p.Accel = "tcg" }, "with kvm, and here is tcg"},
		"another CPU":      {func(s *mvm.SnapshotItem, _ *vmm.Probe) { s.CPU = "0123456789abcdef" }, "made on another CPU"},
		"an emulated CPU?": {func(s *mvm.SnapshotItem, _ *vmm.Probe) { s.CPU = "tcg" }, "made on another CPU"},
	} {
		s, p := made, here
		tc.change(&s, &p)
		t.Run(name, func(t *testing.T) { refused(t, fits(&s, p), mvm.ErrUnsupported, tc.says) })
	}
}

// Files of a snapshot that are cut short, of another snapshot or changed are refused
// before anything is begun; the VM's disk stays as it is.
func TestLoadForeignFiles(t *testing.T) {
	w, m, _ := snapshotWorld(t)
	ctx := t.Context()
	vm, err := m.VM.Get(ctx, sel("web"))
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(w.dir, name) }
	for _, n := range []string{"1", "2"} {
		if _, err := m.VM.Snapshot(ctx, sel("web"), file("mem"+n), file("state"+n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(vm.RootfsPath)
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(file("state1"))
	if err != nil {
		t.Fatal(err)
	}
	before := w.state()
	changed := append([]byte{}, state...)
	changed[len(changed)/2] ^= 1
	for name, tc := range map[string]struct {
		state []byte
		says  string
	}{
		"cut short": {state[:len(state)-1], "is cut short"},
		"empty":     {nil, "is cut short"},
		"changed":   {changed, "is not what was written with this snapshot"},
		"longer":    {append(append([]byte{}, state...), 0), "is not what was written with this snapshot"},
	} {
		if err := os.WriteFile(file("state1"), tc.state, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := m.VM.LoadSnapshot(ctx, sel("web"), file("mem1"), file("state1"), true)
		t.Run(name, func(t *testing.T) { refused(t, err, mvm.ErrBroken, tc.says) })
	}
	if err := errors.Join(os.WriteFile(file("state1"), state, 0o600), os.Truncate(file("mem1"), 1)); err != nil {
		t.Fatal(err)
	}
	_, err = m.VM.LoadSnapshot(ctx, sel("web"), file("mem1"), file("state1"), true)
	refused(t, err, mvm.ErrBroken, "has 1 bytes in place of")
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("what was refused changed something:\n%s", diff)
	}
	if now, err := os.ReadFile(vm.RootfsPath); err != nil || string(now) != string(disk) {
		t.Errorf("the disk was touched: %v", err)
	}
	if _, err := m.VM.LoadSnapshot(ctx, sel("web"), file("mem2"), file("state2"), true); err != nil {
		t.Errorf("the one that is whole is not loaded: %v", err)
	}
}

// A file that takes the name of a snapshot while that is being written is kept.
func TestSnapshotMeetsAFile(t *testing.T) {
	dir := t.TempDir()
	for _, taken := range []string{"mem", "state"} {
		step := &publishStep{
			Staged: filepath.Join(dir, ".state.mvm-0123456789abcdef"), StagedMem: filepath.Join(dir, ".mem.mvm-0123456789abcdef"),
			Dir: besideState(filepath.Join(dir, "state")), State: filepath.Join(dir, "state"), Mem: filepath.Join(dir, "mem"),
		}
		theirs := filepath.Join(dir, taken)
		if err := errors.Join(
			os.Mkdir(step.Staged, 0o700), os.WriteFile(filepath.Join(step.Staged, snapState), []byte("ours"), 0o600),
			os.WriteFile(step.StagedMem, []byte("ours"), 0o600), os.WriteFile(theirs, []byte("theirs"), 0o600)); err != nil {
			t.Fatal(err)
		}
		refused(t, step.Apply(t.Context()), mvm.ErrExists, "is there already")
		if err := errors.Join(step.Revert(t.Context()), os.RemoveAll(step.Staged), removeFile(step.StagedMem)); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(dir)
		if data, rerr := os.ReadFile(theirs); err != nil || rerr != nil || string(data) != "theirs" || len(left) != 1 {
			t.Errorf("%s: %q, %v; left %v, %v", taken, data, rerr, left, err)
		}
		if err := os.Remove(theirs); err != nil {
			t.Fatal(err)
		}
	}
}

// A guest that says that it is another machine now, and is not, is no restored VM.
func TestRestoreOfAStubbornGuest(t *testing.T) {
	w, m, g := snapshotWorld(t)
	ctx := t.Context()
	if _, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "web", Name: "warm"}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	for name, tc := range map[string]struct {
		heeds func(*guest.NewIdentity) bool
		says  string
	}{
		"it stays who it was": {func(*guest.NewIdentity) bool { return false }, "host key"},
		"it keeps its name":   {func(n *guest.NewIdentity) bool { n.Config.Hostname = "web"; return true }, `calls itself "web" after it was named "copy"`},
	} {
		g.heeds = tc.heeds
		_, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "warm", Name: "copy", Resume: true})
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Errorf("%s: something is left:\n%s", name, diff)
		}
	}
}
