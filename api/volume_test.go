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
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/testenv"
)

func vol(names ...string) VolumeInput { return VolumeInput{Identifiers: names} }

func TestVolumeCreate(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	yes := true
	for in, want := range map[*VolumeCreateInput]mvm.VolumeItem{
		{Name: "raw", Size: "2M"}:                                         {SizeBytes: 2 << 20, Format: "raw"},
		{Name: "odd", Size: "1.5001M"}:                                    {SizeBytes: 1576960, Format: "raw"}, // rounded up to 4 KiB
		{Name: "sparse", Size: "1T", Sparse: true, Shareable: true}:       {SizeBytes: 1 << 40, Format: "raw", IsShareable: true},
		{Name: "cow", Size: "64G", Format: "qcow2", ReadOnly: &yes}:       {SizeBytes: 64 << 30, Format: "qcow2", IsReadOnly: true},
		{Name: "cached", Size: "1", Writeback: true, ReadOnly: new(bool)}: {SizeBytes: 1 << 20, Format: "raw", Writeback: true},
	} {
		v, err := m.Volume.Create(t.Context(), *in)
		if err != nil {
			t.Fatalf("%s: %v", in.Name, err)
		}
		want.ID, want.Name, want.Status, want.Path, want.CreatedAt, want.UpdatedAt = v.ID, in.Name, mvm.VolumeAvailable, "volumes/"+v.ID+"."+want.Format, v.CreatedAt, v.UpdatedAt
		if d := cmp.Diff(&want, v); d != "" || !validID(v.ID) || v.CreatedAt == "" {
			t.Errorf("%s: id %q, created %q\n%s", in.Name, v.ID, v.CreatedAt, d)
		}
		got, err := m.Volume.Get(t.Context(), vol(v.ID[:5]))
		if d := cmp.Diff(v, got); d != "" || err != nil {
			t.Errorf("%s: %v\n%s", in.Name, err, d)
		}
		if size, err := disk.VolumeSize(filepath.Join(m.CacheDir(), v.Path), v.Format); size != want.SizeBytes || err != nil {
			t.Errorf("%s: its file has %d bytes, %v", in.Name, size, err)
		}
	}
	all, err := m.Volume.ListAll(t.Context())
	if err != nil || len(all) != 5 || all[0].Name != "cached" || all[4].Name != "sparse" {
		t.Errorf("listed are %v, %v", all, err)
	}
}

// What can never work is refused before anything is there, and a bad name leaves
// no directory.
func TestVolumeCreateRefuses(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	if _, err := m.Volume.Create(t.Context(), VolumeCreateInput{Name: "data", Size: "1M"}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	for says, c := range map[string]struct {
		in   VolumeCreateInput
		kind mvm.Kind
	}{
		"name":             {VolumeCreateInput{Name: "a/b", Size: "1M"}, mvm.ErrInvalid},
		"is empty":         {VolumeCreateInput{Size: "1M"}, mvm.ErrInvalid},
		"not a size":       {VolumeCreateInput{Name: "x", Size: "big"}, mvm.ErrInvalid},
		`"" is not a size`: {VolumeCreateInput{Name: "x"}, mvm.ErrInvalid},
		"too small":        {VolumeCreateInput{Name: "x", Size: "4K"}, mvm.ErrInvalid},
		"too large":        {VolumeCreateInput{Name: "x", Size: "17T"}, mvm.ErrInvalid},
		"vdi":              {VolumeCreateInput{Name: "x", Size: "1M", Format: "vdi"}, mvm.ErrInvalid},
		"in any case":      {VolumeCreateInput{Name: "x", Size: "1M", Format: "qcow2", Sparse: true}, mvm.ErrInvalid},
		"zfs":              {VolumeCreateInput{Name: "x", Size: "1M", Mkfs: "zfs"}, mvm.ErrInvalid},
		"needs":            {VolumeCreateInput{Name: "x", Size: "64M", Mkfs: "xfs"}, mvm.ErrInvalid},
		"exists already":   {VolumeCreateInput{Name: "data", Size: "1M"}, mvm.ErrExists},
		"disk full":        {VolumeCreateInput{Name: "x", Size: "15T"}, mvm.ErrUnavailable},
	} {
		_, err := m.Volume.Create(t.Context(), c.in)
		refused(t, err, c.kind, says)
	}
	for _, sel := range []string{"none", "", "dat"} {
		if _, err := m.Volume.Get(t.Context(), vol(sel)); err == nil || mvm.HintOf(err) == "" {
			t.Errorf("get %q: %v", sel, err)
		}
	}
	_, err := m.Volume.Get(t.Context(), vol("dat"))
	refused(t, err, mvm.ErrNotFound, `there is no volume "dat"`)
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Errorf("something was left:\n%s", d)
	}
}

// tryVolume has an operation on volumes fail at a point.
func (w *world) tryVolume(kind, point, action, when string, do func(*Client) error) {
	w.t.Helper()
	fault := fmt.Sprintf("%s:%s:%s:%s", action, kind, point, when)
	if err := do(w.faulty(fault)); err == nil {
		w.t.Errorf("%s: nothing failed", fault)
	}
}

func createData(m *Client) error {
	_, err := m.Volume.Create(context.Background(), VolumeCreateInput{Name: "data", Size: "2M"})
	return err
}

// A volume is there or it is not: wherever making or removing it fails.
func TestVolumeFailureAtEveryStep(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if _, err := w.open().Volume.Create(ctx, VolumeCreateInput{Name: "other", Size: "1M"}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	for _, action := range []string{"error", "cancel"} {
		for _, at := range [][2]string{{"reserve", "after"}, {"volume", "before"}, {"volume", "after"}, {"commit", "before"}} {
			w.tryVolume(opVolumeCreate, at[0], action, at[1], createData)
			if d := cmp.Diff(before, w.state()); d != "" {
				t.Errorf("create %v: the world changed:\n%s", at, d)
			}
		}
	}
	for _, at := range [][2]string{{"revert:volume", "before"}, {"revert:volume", "after"}, {"finish", "before"}} {
		if err := createData(w.open()); err != nil {
			t.Fatal(err)
		}
		w.tryVolume(opVolumeRemove, at[0], "error", at[1], func(m *Client) error {
			_, err := m.Volume.Remove(ctx, vol("data"), false)
			return err
		})
		if d := cmp.Diff(before, w.state()); d != "" { // the next command finishes it
			t.Errorf("remove %v: the world is not as before:\n%s", at, d)
		}
	}
}

// Resizing that fails tells the truth: the record is what the file is.
func TestVolumeResizeFailureAtEveryStep(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if err := createData(w.open()); err != nil {
		t.Fatal(err)
	}
	size := int64(2 << 20)
	for _, at := range [][2]string{{"reserve", "after"}, {"volume-resize", "before"}, {"volume-resize", "after"}, {"commit", "before"}} {
		want := fmt.Sprint(size>>20+1, "M")
		w.tryVolume(opVolumeResize, at[0], "error", at[1], func(m *Client) error {
			_, err := m.Volume.Resize(ctx, VolumeResizeInput{Name: "data", Size: want})
			return err
		})
		m := w.open()
		st, err := m.core.open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		v, err := m.Volume.Get(ctx, vol("data"))
		if err != nil {
			t.Fatal(err)
		}
		row, err := st.GetVolume(ctx, v.ID)
		file, fileErr := disk.VolumeSize(filepath.Join(m.CacheDir(), v.Path), v.Format)
		if err := errors.Join(err, fileErr); err != nil || row.SizeBytes != file {
			t.Errorf("resize %v: recorded are %d bytes, the file has %d, %v", at, row.SizeBytes, file, err)
		}
		size = file
	}
	if size != 4<<20 { // it grew where the fault came behind the step
		t.Errorf("in the end it has %d bytes", size)
	}
}

func TestVolumeRemove(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	empty := w.state()
	for _, name := range []string{"data", "free"} {
		if _, err := m.Volume.Create(ctx, VolumeCreateInput{Name: name, Size: "1M"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", Volumes: []string{"data"}}); err != nil {
		t.Fatal(err)
	}
	batch, err := m.Volume.Remove(ctx, vol("data", "free", "none"), false)
	if len(batch.Entries) != 3 || len(batch.Items()) != 1 || batch.Items()[0].Name != "free" {
		t.Errorf("removed are %v", batch.Items())
	}
	refused(t, batch.Entries[0].Err, mvm.ErrConflict, `it is attached to "web"`)
	refused(t, batch.Entries[2].Err, mvm.ErrNotFound, "none")
	if err == nil {
		t.Error("no error at all")
	}
	if _, err := m.Volume.Remove(ctx, VolumeInput{}, false); mvm.KindOf(err) != mvm.ErrInvalid {
		t.Errorf("nothing named: %v", err)
	}
	if _, err := m.Volume.Remove(ctx, vol("data"), true); err != nil {
		t.Error(err)
	}
	vm, err := m.VM.Get(ctx, sel("web"))
	if err != nil || len(vm.VolumeIDs) != 0 {
		t.Errorf("the VM has %v, %v", vm.VolumeIDs, err)
	}
	if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(empty, w.state()); d != "" {
		t.Errorf("left is\n%s", d)
	}
}

// A VM that goes leaves its volumes, with what is on them.
func TestVolumesOutliveVMs(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	v, err := m.Volume.Create(ctx, VolumeCreateInput{Name: "data", Size: "1M"})
	if err != nil {
		t.Fatal(err)
	}
	before := w.state()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", Volumes: []string{"data"}}); err != nil {
		t.Fatal(err)
	}
	if got, err := m.Volume.Get(ctx, vol("data")); err != nil || got.Status != mvm.VolumeAttached || got.VMID == nil {
		t.Errorf("%+v, %v", got, err)
	}
	path := filepath.Join(m.CacheDir(), v.Path)
	if err := os.WriteFile(path, append([]byte("precious"), make([]byte, 1<<20-8)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	after := w.state()
	if d := cmp.Diff(before, after[:len(before)]); d != "" {
		t.Error(d)
	}
	if data, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(data), "precious") {
		t.Errorf("%.8q, %v", data, err)
	}
}

func TestVolumeResize(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	for _, in := range []VolumeCreateInput{{Name: "raw", Size: "2M"}, {Name: "cow", Size: "4M", Format: "qcow2"}} {
		if _, err := m.Volume.Create(ctx, in); err != nil {
			t.Fatal(err)
		}
	}
	v, err := m.Volume.Resize(ctx, VolumeResizeInput{Name: "raw", Size: "3M"})
	if err != nil || v.SizeBytes != 3<<20 {
		t.Fatalf("%+v, %v", v, err)
	}
	_, err = m.Volume.Resize(ctx, VolumeResizeInput{Name: "raw", Size: "2M", Shrink: true})
	refused(t, err, mvm.ErrInvalid, "cannot become smaller")
	_, err = m.Volume.Resize(ctx, VolumeResizeInput{Name: "cow", Size: "2M"})
	refused(t, err, mvm.ErrConflict, "would be lost")
	_, err = m.Volume.Resize(ctx, VolumeResizeInput{Name: "raw", Size: "15T"})
	refused(t, err, mvm.ErrUnavailable, "disk full")
	_, err = m.Volume.Resize(ctx, VolumeResizeInput{Name: "none", Size: "2M"})
	refused(t, err, mvm.ErrNotFound, "none")

	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", Volumes: []string{"raw"}}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	_, err = m.Volume.Resize(ctx, VolumeResizeInput{Name: "raw", Size: "5M"})
	refused(t, err, mvm.ErrConflict, `VM "web" has it and is running`)
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Error(d)
	}
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	if v, err = m.Volume.Resize(ctx, VolumeResizeInput{Name: "raw", Size: "5M"}); err != nil || v.SizeBytes != 5<<20 || v.Status != mvm.VolumeAttached {
		t.Errorf("%+v, %v", v, err)
	}
	testenv.Require(t, "qemu-img")
	for _, step := range []struct {
		size   string
		shrink bool
		want   int64
	}{{"8M", false, 8 << 20}, {"2M", true, 2 << 20}, {"2M", false, 2 << 20}} {
		if v, err = m.Volume.Resize(ctx, VolumeResizeInput{Name: "cow", Size: step.size, Shrink: step.shrink}); err != nil || v.SizeBytes != step.want {
			t.Errorf("%s: %+v, %v", step.size, v, err)
		}
	}
}

// What is in the way of a volume's users is told, and nobody opens it meanwhile.
func TestVolumeBusy(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	v, err := m.Volume.Create(ctx, VolumeCreateInput{Name: "data", Size: "1M"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", Volumes: []string{"data"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	during := false
	m.core.runner = nil // nothing here needs tools
	err = m.core.journal.Run(ctx, holding(v, func(context.Context) error {
		during = true
		_, err := w.open().VM.Start(ctx, sel("web"))
		refused(t, err, mvm.ErrBusy, `working on "data"`)
		_, err = w.open().Volume.Resize(ctx, VolumeResizeInput{Name: "data", Size: "2M"})
		refused(t, err, mvm.ErrBusy, `working on "data"`)
		return nil
	}))
	if err != nil || !during {
		t.Fatal(err)
	}
	if _, err := m.VM.Start(ctx, sel("web")); err != nil {
		t.Error(err)
	}
}

func TestVolumeInspect(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	for _, in := range []VolumeCreateInput{{Name: "data", Size: "1M", Shareable: true}, {Name: "cow", Size: "1G", Format: "qcow2"}} {
		if _, err := m.Volume.Create(ctx, in); err != nil {
			t.Fatal(err)
		}
	}
	out, err := m.Volume.Inspect(ctx, vol("data"))
	if err != nil || out.Attachment != nil || out.Attachments == nil || out.Timestamps.CreatedAt != out.Volume.CreatedAt {
		t.Errorf("%+v, %v", out, err)
	}
	for _, name := range []string{"web", "db"} {
		if _, err := m.VM.Create(ctx, VMCreateInput{Name: name, Volumes: []string{"data:ro:/srv"}}); err != nil {
			t.Fatal(err)
		}
	}
	out, err = m.Volume.Inspect(ctx, vol("data"))
	if err != nil {
		t.Fatal(err)
	}
	if a := out.Attachment; a == nil || len(out.Attachments) != 2 || a.VMName != "web" || a.VMStatus != mvm.StatusRunning || !a.IsReadOnly || a.MountPoint != "/srv" || a.VMID != *out.Volume.VMID {
		t.Errorf("attachment %+v of %d", a, len(out.Attachments))
	}
	if i := out.DiskInfo; i.Format != "raw" || i.VirtualSize != 1<<20 || i.ActualSize < 1<<20 {
		t.Errorf("%+v", i)
	}
	seen, err := m.VM.Inspect(ctx, sel("web"))
	if err != nil || len(seen.VM.Volumes) != 1 || seen.VM.Volumes[0].Name != "data" {
		t.Errorf("the VM shows %v, %v", seen.VM.Volumes, err)
	}
	cow, err := m.Volume.Get(ctx, vol("cow"))
	if err != nil {
		t.Fatal(err)
	}
	// Somebody exchanges the file for one that would have QEMU read another.
	path := filepath.Join(m.CacheDir(), cow.Path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := disk.Overlay(ctx, filepath.Join(m.CacheDir(), "images/tiny/disk.raw"), disk.Raw, path, 0); err != nil {
		t.Fatal(err)
	}
	_, err = m.Volume.Inspect(ctx, vol("cow"))
	refused(t, err, mvm.ErrBroken, "based on another file")
	_, err = m.VM.Create(ctx, VMCreateInput{Name: "evil", Volumes: []string{"cow"}})
	refused(t, err, mvm.ErrBroken, "based on another file")
}

// A qcow2 volume is never handed to Firecracker, which would give its bytes to the
// guest as they are: without a server for it, it is refused.
func TestQcow2VolumeOnFirecracker(t *testing.T) {
	w := newWorld(t)
	w.fc = w.driver.Fake.Probe(t.Context())
	w.fc.Capabilities.Qcow2, w.fc.Capabilities.Qcow2Volumes = false, false
	m := w.open()
	w.stock(m)
	if _, err := m.Volume.Create(t.Context(), VolumeCreateInput{Name: "cow", Size: "1M", Format: "qcow2"}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	_, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Hypervisor: "firecracker", Volumes: []string{"cow"}})
	refused(t, err, mvm.ErrUnsupported, `volume "cow" is qcow2, which firecracker gets from qemu-storage-daemon, and that is not installed`)
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Error(d)
	}
}

// holding is an operation on a volume that calls do while it is under way.
func holding(v *mvm.VolumeItem, do func(context.Context) error) op.Op {
	return op.Op{Kind: "volume.test", Subject: v.Name, SubjectID: v.ID, Steps: []op.Step{&actStep{do}}}
}
