package api

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/vmm"
)

// volume gives the world a volume with an empty file.
func (w *world) volume(m *Client, v mvm.VolumeItem) *mvm.VolumeItem {
	w.t.Helper()
	v.ID, v.Status, v.SizeBytes = newID(), mvm.VolumeAvailable, 1<<20
	if v.Format == "" {
		v.Format = "raw"
	}
	v.Path = "volumes/" + v.ID + "." + v.Format
	path := m.core.paths.abs(v.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := disk.MakeVolume(w.t.Context(), nil, disk.Volume{Path: path, Format: v.Format, Size: 1 << 20}); err != nil {
		w.t.Fatal(err)
	}
	st, err := m.core.open(w.t.Context())
	if err == nil {
		err = st.InsertVolume(w.t.Context(), &v)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return &v
}

// startPlan plans the start of a VM that exists.
func (w *world) startPlan(m *Client, name string) (*vmPlan, error) {
	w.t.Helper()
	st, err := m.core.open(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	inv, err := loadInventory(w.t.Context(), st)
	if err != nil {
		w.t.Fatal(err)
	}
	vm, err := m.VM.Get(w.t.Context(), VMInput{Identifiers: []string{name}})
	if err != nil {
		w.t.Fatal(err)
	}
	return m.core.planStart(w.t.Context(), st, inv, vm)
}

func TestLaunchHasVolumes(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	b := w.volume(m, mvm.VolumeItem{Name: "beta", Format: "qcow2", Writeback: true})
	a := w.volume(m, mvm.VolumeItem{Name: "alpha", IsShareable: true})
	f := w.volume(m, mvm.VolumeItem{Name: "fixed", IsReadOnly: true})
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Volumes: []string{"beta", a.ID[:6] + ":ro", "fixed:/srv/fixed"}})
	if err != nil {
		t.Fatal(err)
	}
	vm := res.VMs[0]
	dir := filepath.Join(m.CacheDir(), "volumes")
	want := []vmm.Disk{
		{ID: "rootfs", Path: vm.RootfsPath, Format: "qcow2"},
		{ID: "vol-" + b.ID, Path: filepath.Join(dir, b.ID+".qcow2"), Format: "qcow2", Writeback: true},
		{ID: "vol-" + a.ID, Path: filepath.Join(dir, a.ID+".raw"), Format: "raw", ReadOnly: true, NoDiscard: true},
		{ID: "vol-" + f.ID, Path: filepath.Join(dir, f.ID+".raw"), Format: "raw", ReadOnly: true, NoDiscard: true},
	}
	if _, err := m.VM.Stop(t.Context(), VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	p, err := w.startPlan(m, "web")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, p.launch().Disks); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{b.ID, a.ID, f.ID}, p.item.VolumeIDs); d != "" {
		t.Error(d)
	}
	// A reader shares, a writer is refused and leaves nothing.
	before := w.state()
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "other", Volumes: []string{"beta"}}); mvm.KindOf(err) != mvm.ErrConflict || !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("a second writer: %v", err)
	}
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Error(d)
	}
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "other", Volumes: []string{"alpha:ro"}}); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, b.ID+".qcow2")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.startPlan(m, "web"); mvm.KindOf(err) != mvm.ErrBroken || !strings.Contains(mvm.HintOf(err), "mvm volume detach web beta") {
		t.Errorf("without its file: %v (%s)", err, mvm.HintOf(err))
	}
}

// Several VMs made at once share a volume only where none of them writes to it.
func TestVolumeForSeveralVMs(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	w.volume(m, mvm.VolumeItem{Name: "alpha", IsShareable: true})
	w.volume(m, mvm.VolumeItem{Name: "fixed", IsReadOnly: true})
	two := 2
	before := w.state()
	for _, spec := range []string{"alpha", "fixed"} {
		if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "many", Count: &two, Volumes: []string{spec}}); mvm.KindOf(err) != mvm.ErrInvalid || !strings.Contains(err.Error(), "2 VMs at once") {
			t.Errorf("several VMs with %s: %v", spec, err)
		}
	}
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Error(d)
	}
	if res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "many", Count: &two, Volumes: []string{"alpha:ro"}}); err != nil || len(res.VMs) != 2 {
		t.Errorf("several readers: %v", err)
	}
}

func TestParseVolumeSpec(t *testing.T) {
	yes, no := true, false
	for in, want := range map[string]volumeSpec{
		"data":              {volume: "data"},
		"data:ro":           {volume: "data", readOnly: &yes},
		"data:rw":           {volume: "data", readOnly: &no},
		"data:/mnt/x":       {volume: "data", mount: "/mnt/x"},
		"data:ro:/srv":      {volume: "data", readOnly: &yes, mount: "/srv"},
		"data:/srv/a b:ro":  {volume: "data", readOnly: &yes, mount: "/srv/a b"},
		"data:/usr/local/x": {volume: "data", mount: "/usr/local/x"},
	} {
		got, err := parseVolumeSpec(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(volumeSpec{})); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
	for _, in := range []string{
		"", ":ro", "data:", "data:ro:rw", "data:/a:/b", "data:mnt", "data:/", "data:/a/../b", "data:/a/", "data:/proc/x", "data:/dev", "data:/etc", "data:/a\nb",
		"/tmp:/mnt", "./x:/mnt", ".", "~/x:/mnt",
		"data:/" + strings.Repeat("a", 1100),
	} {
		if _, err := parseVolumeSpec(in); mvm.KindOf(err) != mvm.ErrInvalid || mvm.HintOf(err) == "" {
			t.Errorf("%q: %v", in, err)
		}
	}
}
