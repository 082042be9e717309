package store_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// withVolumes makes VMs a, b and c, and a volume of each kind.
func withVolumes(t *testing.T) *store.Store {
	t.Helper()
	st, ctx := open(t), t.Context()
	for _, id := range []string{"a", "b", "c"} {
		must(t, st.InsertVM(ctx, &mvm.VMInstanceItem{ID: id, Name: "vm-" + id}))
	}
	for _, v := range []*mvm.VolumeItem{
		{ID: "one", Name: "data"}, {ID: "two", Name: "more"},
		{ID: "ro", Name: "fixed", IsReadOnly: true}, {ID: "shared", Name: "common", IsShareable: true},
	} {
		v.Status = mvm.VolumeAvailable
		must(t, st.InsertVolume(ctx, v))
	}
	return st
}

// at is an attachment.
func at(volume, vm string, readOnly bool) *mvm.VolumeAttachment {
	return &mvm.VolumeAttachment{VolumeID: volume, VMID: vm, IsReadOnly: readOnly}
}

func TestAttachVolumeKeepsOneWriter(t *testing.T) {
	type try struct {
		volume, vm string
		ro         bool
		kind       mvm.Kind // "": it works
		text       string
	}
	for name, tries := range map[string][]try{
		"alone": {
			{"one", "a", false, "", ""},
			{"one", "a", false, mvm.ErrConflict, `cannot attach volume "data": it is attached to VM "vm-a" already`},
			{"one", "b", false, mvm.ErrConflict, `it is attached to VM "vm-a"`},
			{"one", "b", true, mvm.ErrConflict, `it is attached to VM "vm-a"`},
		},
		"alone, though read": {{"one", "a", true, "", ""}, {"one", "b", true, mvm.ErrConflict, `"vm-a"`}},
		"readers share": {
			{"shared", "a", true, "", ""}, {"shared", "b", true, "", ""},
			{"shared", "c", false, mvm.ErrConflict, `VM "vm-a" has it already`},
			{"shared", "b", true, mvm.ErrConflict, `it is attached to VM "vm-b" already`},
		},
		"a writer does not": {
			{"shared", "a", false, "", ""},
			{"shared", "b", true, mvm.ErrConflict, `VM "vm-a" writes to it`},
			{"shared", "b", false, mvm.ErrConflict, `VM "vm-a" writes to it`},
		},
		"nobody writes": {{"ro", "a", false, mvm.ErrInvalid, "it is a read-only volume"}, {"ro", "a", true, "", ""}},
		"a volume gone": {{"none", "a", false, mvm.ErrNotFound, `"none"`}},
		"a VM gone":     {{"one", "none", false, mvm.ErrNotFound, `"none"`}},
	} {
		t.Run(name, func(t *testing.T) {
			st := withVolumes(t)
			for _, try := range tries {
				err := st.AttachVolume(t.Context(), at(try.volume, try.vm, try.ro))
				if try.kind == "" {
					must(t, err)
					continue
				}
				wantError(t, err, try.kind, try.text)
			}
		})
	}
}

// What the rows of volumes and VMs say follows from the attachments, also where an
// older copy of a row is written back.
func TestRowsFollowAttachments(t *testing.T) {
	st, ctx := withVolumes(t), t.Context()
	check := func(what string, volume string, status mvm.VolumeStatus, holder string, vm string, ids ...string) {
		t.Helper()
		v, err := st.GetVolume(ctx, volume)
		must(t, err)
		got := ""
		if v.VMID != nil {
			got = *v.VMID
		}
		if v.Status != status || got != holder {
			t.Errorf("%s: volume %s is %s by %q, want %s by %q", what, volume, v.Status, got, status, holder)
		}
		m, err := st.GetVM(ctx, vm)
		must(t, err)
		if d := cmp.Diff(append([]string{}, ids...), m.VolumeIDs); d != "" {
			t.Errorf("%s: volumes of %s (-want +got):\n%s", what, vm, d)
		}
	}
	oldVM, err := st.GetVM(ctx, "a")
	must(t, err)
	oldVolume, err := st.GetVolume(ctx, "two")
	must(t, err)
	for _, v := range []string{"two", "shared", "one"} {
		must(t, st.AttachVolume(ctx, at(v, "a", v == "shared")))
	}
	must(t, st.AttachVolume(ctx, at("shared", "b", true)))
	must(t, st.UpdateVM(ctx, oldVM))
	must(t, st.UpdateVolume(ctx, oldVolume))
	check("attached", "two", mvm.VolumeAttached, "a", "a", "two", "shared", "one")
	must(t, st.DetachVolume(ctx, "two", "a"))
	must(t, st.DetachVolume(ctx, "two", "a"))
	check("detached", "two", mvm.VolumeAvailable, "", "a", "shared", "one")
	must(t, st.AttachVolume(ctx, at("two", "a", false)))
	check("attached anew, behind the others", "two", mvm.VolumeAttached, "a", "a", "shared", "one", "two")
	check("shared", "shared", mvm.VolumeAttached, "a", "b", "shared")
	must(t, st.DetachVolume(ctx, "shared", "a"))
	check("the other has it still", "shared", mvm.VolumeAttached, "b", "a", "one", "two")
	must(t, st.DeleteVolume(ctx, "one"))
	check("a volume removed", "two", mvm.VolumeAttached, "a", "a", "two")
	must(t, st.DeleteVM(ctx, "a"))
	check("a VM removed", "two", mvm.VolumeAvailable, "", "b", "shared")
	all, err := st.ListAttachments(ctx)
	must(t, err)
	if len(all) != 1 || all[0].VMID != "b" || all[0].VolumeID != "shared" || !all[0].IsReadOnly || all[0].AttachedAt == "" {
		t.Errorf("left are %+v", all)
	}
}

func TestAttachmentsInOrder(t *testing.T) {
	st, ctx := withVolumes(t), t.Context()
	want := []mvm.VolumeAttachment{}
	for i, v := range []string{"two", "one"} {
		a := at(v, "a", false)
		a.MountPoint = "/srv/" + v
		must(t, st.AttachVolume(ctx, a))
		if a.Position != i || a.AttachedAt == "" {
			t.Errorf("attached as %+v", a)
		}
		want = append(want, *a)
	}
	must(t, st.AttachVolume(ctx, at("shared", "b", true)))
	got, err := st.ListAttachmentsOfVM(ctx, "a")
	must(t, err)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	got, err = st.ListAttachmentsOfVolume(ctx, "one")
	must(t, err)
	if d := cmp.Diff(want[1:], got); d != "" {
		t.Error(d)
	}
}

// Of several commands that want to write to a volume at once, one gets it.
func TestAttachVolumeAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mvm.db")
	first := openAt(t, path)
	ctx := t.Context()
	must(t, first.InsertVolume(ctx, &mvm.VolumeItem{ID: "v", Name: "data", Status: mvm.VolumeAvailable, IsShareable: true}))
	const n = 8
	for i := range n {
		must(t, first.InsertVM(ctx, &mvm.VMInstanceItem{ID: fmt.Sprint("vm", i), Name: fmt.Sprint("vm", i)}))
	}
	var wg sync.WaitGroup
	won := make(chan int, n)
	for i := range n {
		st := openAt(t, path)
		wg.Go(func() {
			if st.AttachVolume(ctx, at("v", fmt.Sprint("vm", i), false)) == nil {
				won <- i
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d write to it", len(won))
	}
}

// What could not be changed in a running VM is as it should be when it has ended, or
// starts anew.
func TestPendingAttachments(t *testing.T) {
	for _, status := range []mvm.VMStatus{mvm.StatusStopped, mvm.StatusCrashed, mvm.StatusStarting} {
		st, ctx := withVolumes(t), t.Context()
		later := at("one", "a", false)
		later.Pending = mvm.PendingAttach
		must(t, st.AttachVolume(ctx, later))
		must(t, st.AttachVolume(ctx, at("two", "a", false)))
		must(t, st.PendAttachment(ctx, "two", "a", mvm.PendingDetach))
		must(t, st.AttachVolume(ctx, at("shared", "b", true)))
		must(t, st.PendAttachment(ctx, "shared", "b", mvm.PendingDetach))
		check := func(want ...string) {
			t.Helper()
			all, err := st.ListAttachments(ctx)
			must(t, err)
			got := []string{}
			for _, a := range all {
				got = append(got, a.VMID+" "+a.VolumeID+" "+string(a.Pending))
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s (-want +got):\n%s", status, d)
			}
		}
		_, err := st.SetVMStatus(ctx, "a", mvm.StatusPaused, "")
		must(t, err)
		check("a one attach", "a two detach", "b shared detach")
		_, err = st.SetVMStatus(ctx, "a", status, "")
		must(t, err)
		check("a one ", "b shared detach")
		if v, err := st.GetVolume(ctx, "two"); err != nil || v.Status != mvm.VolumeAvailable {
			t.Errorf("%s: %+v, %v", status, v, err)
		}
		if m, err := st.GetVM(ctx, "a"); err != nil || len(m.VolumeIDs) != 1 || m.Status != status {
			t.Errorf("%s: %+v, %v", status, m, err)
		}
	}
}
