package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

// snapshotWorld has a VM that runs, whose guest answers.
func snapshotWorld(t *testing.T) (*world, *Client, *testGuest) {
	t.Helper()
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	g := &testGuest{}
	g.serve(w, m)
	return w, m, g
}

func TestSnapshotAndRestore(t *testing.T) {
	w, m, g := snapshotWorld(t)
	ctx := t.Context()
	s, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "web", Name: "warm"})
	if err != nil {
		t.Fatal(err)
	}
	if got := statusOf(t, m, "web"); got != mvm.StatusRunning || !s.QuiescedGuest || s.SizeBytes <= 0 {
		t.Errorf("it is %s after %+v", got, s)
	}
	for _, file := range []string{snapState, snapMem, snapMetaFile, identityName} {
		if st, err := os.Stat(filepath.Join(m.core.paths.abs(s.Path), file)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", file, st, err)
		}
	}
	_, err = m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "web", Name: "warm"})
	refused(t, err, mvm.ErrExists, `"warm" exists already`)

	two := 2
	res, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: s.ID[:6], Name: "copy", Count: &two, Resume: true})
	if err != nil || len(res.VMs) != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	web, err := m.VM.Get(ctx, sel("web"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{web.IPv4: "web", web.MAC: "web", web.TapDevice: "web", web.RootfsPath: "web"}
	for _, vm := range res.VMs {
		for _, own := range []string{vm.IPv4, vm.MAC, vm.TapDevice, vm.RootfsPath} {
			if other, taken := seen[own]; taken {
				t.Errorf("%s shares %s with %s", vm.Name, own, other)
			}
			seen[own] = vm.Name
		}
		next := g.ids[vm.ID]
		if next.OldMAC != web.MAC || !strings.HasPrefix(next.OldAddr, web.IPv4+"/") || next.Config.Hostname != vm.Name || next.Config.Network.MAC != vm.MAC || len(next.Config.Entropy) == 0 {
			t.Errorf("%s was made %+v", vm.Name, next)
		}
		if next.Config.SSH.HostKey == "" || next.Config.Agent.HostKey == next.Config.SSH.HostKey {
			t.Errorf("%s has no keys of its own", vm.Name)
		}
		if vm.Status != mvm.StatusRunning || vm.Options.RestoredFrom != s.ID {
			t.Errorf("%s is %s, from %s", vm.Name, vm.Status, vm.Options.RestoredFrom)
		}
	}
	if _, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "warm", Name: "still"}); err != nil {
		t.Fatal(err)
	}
	if got := statusOf(t, m, "still"); got != mvm.StatusPaused {
		t.Errorf("without resume it is %s", got)
	}
	in, err := m.Snapshot.Inspect(ctx, SnapshotInput{[]string{"warm"}})
	if err != nil || !in.Loadable || len(in.Restored) != 3 || len(in.Disks) != 1 {
		t.Errorf("inspect: %+v, %v", in, err)
	}
	if _, err := m.Snapshot.Remove(ctx, SnapshotInput{[]string{"warm"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Reboot(ctx, VMInput{Identifiers: []string{"copy-1"}, Force: true}); err != nil {
		t.Errorf("a restored VM does not start without its snapshot: %v", err)
	}
	if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web", "copy-1", "copy-2", "still"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{}, w.state()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
}

// Memory and disks go back together.
func TestLoadSnapshotPutsTheDiskBack(t *testing.T) {
	w, m, _ := snapshotWorld(t)
	ctx := t.Context()
	vm, err := m.VM.Get(ctx, sel("web"))
	if err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(vm.RootfsPath)
	if err != nil {
		t.Fatal(err)
	}
	mem, state := filepath.Join(w.dir, "mem"), filepath.Join(w.dir, "state")
	if _, err := m.VM.Snapshot(ctx, sel("web"), mem, state); err != nil {
		t.Fatal(err)
	}
	for _, resume := range []bool{true, false} {
		if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(vm.RootfsPath, 1<<16); err != nil {
			t.Fatal(err)
		}
		if _, err := m.VM.LoadSnapshot(ctx, sel("web"), mem, state, resume); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(vm.RootfsPath); err != nil || string(got) != string(was) {
			t.Errorf("the disk is not back: %d bytes, %v", len(got), err)
		}
		if got, want := statusOf(t, m, "web"), map[bool]mvm.VMStatus{true: mvm.StatusRunning, false: mvm.StatusPaused}[resume]; got != want {
			t.Errorf("it is %s, want %s", got, want)
		}
	}
	left, err := filepath.Glob(vm.RootfsPath + "*")
	if err != nil || len(left) != 1 {
		t.Errorf("beside the disk there is %v, %v", left, err)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	w, m, _ := snapshotWorld(t)
	ctx := t.Context()
	mem, state := filepath.Join(w.dir, "mem"), filepath.Join(w.dir, "state")
	if _, err := m.VM.Snapshot(ctx, sel("web"), mem, state); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "dumb", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "dumb", Name: "dumb"}); err != nil {
		t.Fatal(err)
	}
	four := 4
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "wide", VCPUCount: &four}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"wide"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	missing := filepath.Join(w.dir, "missing")
	for name, c := range map[string]struct {
		do   func() error
		kind mvm.Kind
		says string
	}{
		"onto a file":    {func() error { _, err := m.VM.Snapshot(ctx, sel("web"), mem, missing); return err }, mvm.ErrExists, mem + " is there already"},
		"onto one file":  {func() error { _, err := m.VM.Snapshot(ctx, sel("web"), missing, missing); return err }, mvm.ErrInvalid, "cannot both go"},
		"into nowhere":   {func() error { _, err := m.VM.Snapshot(ctx, sel("web"), missing+"/mem", missing); return err }, mvm.ErrNotFound, "no directory"},
		"no files":       {func() error { _, err := m.VM.Snapshot(ctx, sel("web"), "", ""); return err }, mvm.ErrInvalid, "a file for the memory"},
		"of a stopped":   {func() error { _, err := m.VM.Snapshot(ctx, sel("wide"), missing+"1", missing+"2"); return err }, mvm.ErrConflict, "it is stopped"},
		"into a running": {func() error { _, err := m.VM.LoadSnapshot(ctx, sel("web"), mem, state, true); return err }, mvm.ErrConflict, "it is running"},
		"into another":   {func() error { _, err := m.VM.LoadSnapshot(ctx, sel("wide"), mem, state, true); return err }, mvm.ErrConflict, "vCPUs: 1, not 4"},
		"of no snapshot": {func() error { _, err := m.VM.LoadSnapshot(ctx, sel("wide"), mem, missing, true); return err }, mvm.ErrBroken, "is no snapshot of mvm"},
		"wrong memory":   {func() error { _, err := m.VM.LoadSnapshot(ctx, sel("wide"), state, state, true); return err }, mvm.ErrBroken, "bytes in place of"},
		"without agent": {func() error {
			_, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "dumb", Name: "x"})
			return err
		}, mvm.ErrUnsupported, "no agent"},
		"taken name": {func() error {
			_, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "dumb", Name: "web"})
			return err
		}, mvm.ErrUnsupported, ""},
		"no such": {func() error {
			_, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "none", Name: "x"})
			return err
		}, mvm.ErrNotFound, "no snapshot"},
		"bad name": {func() error {
			_, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "web", Name: "../x"})
			return err
		}, mvm.ErrInvalid, ""},
	} {
		t.Run(name, func(t *testing.T) { refused(t, c.do(), c.kind, c.says) })
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("what was refused changed something:\n%s", diff)
	}
}

// everyPoint runs an operation with a fault at each point of its plan, whatever that
// is: steps are counted up until the fault hits none and the operation succeeds. It
// returns how many there were. Each failure has to leave the world as it was.
func everyPoint(t *testing.T, w *world, kind string, do func(*Client) error, undo func() error) int {
	t.Helper()
	before, steps := w.state(), 0
	for _, action := range []string{"error", "cancel"} {
		fails := func(point string) bool {
			fault := action + ":" + kind + ":" + point
			err := do(w.faulty(fault))
			if err == nil {
				return false
			}
			if !strings.Contains(err.Error(), "injected") && !strings.Contains(err.Error(), "interrupted") && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: the error is %v", fault, err)
			}
			if diff := cmp.Diff(before, w.state()); diff != "" {
				t.Fatalf("%s: the world changed:\n%s", fault, diff)
			}
			return true
		}
		if !fails("reserve:after") || !fails("commit:before") {
			t.Fatalf("%s of %s: nothing failed", action, kind)
		}
		for steps = 0; fails(fmt.Sprintf("%d:before", steps)); steps++ {
			if !fails(fmt.Sprintf("%d:after", steps)) {
				t.Fatalf("%s after step %d of %s: nothing failed", action, steps, kind)
			}
		}
		if err := undo(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Fatalf("%s and back changed the world:\n%s", kind, diff)
		}
	}
	return steps
}

func TestSnapshotFailsAtEveryStep(t *testing.T) {
	w, m, g := snapshotWorld(t)
	ctx := t.Context()
	mem, state := filepath.Join(w.dir, "out", "mem"), filepath.Join(w.dir, "out", "state")
	if err := os.Mkdir(filepath.Dir(mem), 0o700); err != nil {
		t.Fatal(err)
	}
	on := func(do func(*Client) error) func(*Client) error {
		return func(m *Client) error {
			g.serve(w, m)
			err := do(m)
			if got := statusOf(t, m, "web"); got != mvm.StatusRunning { // nobody leaves it standing still
				t.Errorf("the VM is %s", got)
			}
			return err
		}
	}
	outFiles := func() []string {
		files, err := filepath.Glob(filepath.Join(filepath.Dir(mem), "*"))
		hidden, err2 := filepath.Glob(filepath.Join(filepath.Dir(mem), ".*"))
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return append(files, hidden...)
	}
	t.Run("create", func(t *testing.T) {
		n := everyPoint(t, w, opSnapshot, on(func(m *Client) error {
			_, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "web", Name: "s"})
			return err
		}),
			func() error { _, err := m.Snapshot.Remove(ctx, SnapshotInput{[]string{"s"}}); return err })
		if n < 4 {
			t.Errorf("only %d steps", n)
		}
	})
	t.Run("to files", func(t *testing.T) {
		everyPoint(t, w, opSnapshot, on(func(m *Client) error {
			_, err := m.VM.Snapshot(ctx, sel("web"), mem, state)
			if files := outFiles(); err != nil && len(files) > 0 {
				t.Errorf("left: %v", files)
			}
			return err
		}), func() error { return errors.Join(os.Remove(mem), os.Remove(state), os.RemoveAll(besideState(state))) })
	})
	if _, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "web", Name: "warm"}); err != nil {
		t.Fatal(err)
	}
	t.Run("restore", func(t *testing.T) {
		n := everyPoint(t, w, opRestore, on(func(m *Client) error {
			_, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "warm", Name: "copy", Resume: true})
			return err
		}), func() error {
			_, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"copy"}, Force: true})
			return err
		})
		if n < 7 {
			t.Errorf("only %d steps", n)
		}
	})
	if _, err := m.VM.Snapshot(ctx, sel("web"), mem, state); err != nil {
		t.Fatal(err)
	}
	stop := func() error { _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); return err }
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	t.Run("load", func(t *testing.T) {
		n := everyPoint(t, w, opLoad, func(m *Client) error {
			g.serve(w, m)
			_, err := m.VM.LoadSnapshot(ctx, sel("web"), mem, state, true)
			return err
		}, stop)
		if n < 6 {
			t.Errorf("only %d steps", n)
		}
	})
}

// What the guest can write to of its volumes is part of the snapshot: a restored VM
// has copies under names of their own, which go with a restore that fails.
func TestSnapshotWithVolumes(t *testing.T) {
	w, m, g := snapshotWorld(t)
	ctx := t.Context()
	for _, name := range []string{"data", "shared"} {
		if _, err := m.Volume.Create(ctx, VolumeCreateInput{Name: name, Size: "1M", Shareable: name == "shared"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "db", Volumes: []string{"data", "shared:ro"}}); err != nil {
		t.Fatal(err)
	}
	s, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "db", Name: "s"})
	if err != nil || len(s.VolumeIDs) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	restore := func(m *Client) error {
		g.serve(w, m)
		_, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "s", Name: "copy", Resume: true})
		return err
	}
	before := w.state()
	for _, fault := range []string{"clone:after", "vmm:after", "become:before", "commit:before"} {
		if err := restore(w.faulty("error:" + opRestore + ":" + fault)); err == nil {
			t.Fatalf("%s: nothing failed", fault)
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Errorf("%s: the world changed:\n%s", fault, diff)
		}
	}
	if err := restore(m); err != nil {
		t.Fatal(err)
	}
	vm, err := m.VM.Get(ctx, sel("copy"))
	if err != nil || len(vm.VolumeIDs) != 2 {
		t.Fatalf("%+v, %v", vm, err)
	}
	copied, err := m.Volume.Get(ctx, VolumeInput{Identifiers: []string{"copy-data"}})
	if err != nil || copied.ID != vm.VolumeIDs[0] || copied.SizeBytes != 1<<20 || deref(copied.VMID) != vm.ID {
		t.Errorf("the copy is %+v, %v", copied, err)
	}
	shared, err := m.Volume.Get(ctx, VolumeInput{Identifiers: []string{"shared"}})
	if err != nil || shared.ID != vm.VolumeIDs[1] {
		t.Errorf("what is read-only is not shared: %+v, %v", shared, err)
	}
	if _, err := m.VM.Reboot(ctx, VMInput{Identifiers: []string{"copy"}, Force: true}); err != nil {
		t.Errorf("it does not start again: %v", err)
	}
	if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"copy"}, Force: true}); err != nil {
		t.Error(err)
	}
	if v, err := m.Volume.Get(ctx, VolumeInput{Identifiers: []string{"copy-data"}}); err != nil || v.Status != mvm.VolumeAvailable {
		t.Errorf("the copy went with its VM: %+v, %v", v, err)
	}
}
