package store_test

import (
	"slices"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// Every verb in every phase, against the transition table.
func TestClaimVM(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	for _, tr := range mvm.Transitions() {
		for _, status := range mvm.Statuses() {
			t.Run(string(tr.Verb)+" "+string(status), func(t *testing.T) {
				must(t, st.DeleteVM(ctx, "id"))
				must(t, st.InsertVM(ctx, &mvm.VMInstanceItem{ID: "id", Name: "web", Status: status}))
				before, err := st.ClaimVM(ctx, "id", tr.Verb)
				after, err2 := st.GetVM(ctx, "id")
				must(t, err2)
				if !tr.Allows(status) {
					wantError(t, err, mvm.ErrConflict, "cannot "+string(tr.Verb)+` "web": it is `+string(status)+"; it has to be "+string(tr.From[0]))
					if after.Status != status {
						t.Errorf("refused, and yet it is %s", after.Status)
					}
					return
				}
				must(t, err)
				want := tr.During
				if want == "" {
					want = status
				}
				if before.Status != status || after.Status != want {
					t.Errorf("from %s to %s, want from %s to %s", before.Status, after.Status, status, want)
				}
			})
		}
	}
}

func TestClaimVMThatIsHeld(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	_, err := st.ClaimVM(ctx, "none", mvm.VerbStop)
	wantError(t, err, mvm.ErrNotFound, `no VM has the id "none"`)
	must(t, st.InsertVM(ctx, &mvm.VMInstanceItem{ID: "id", Name: "web", Status: mvm.StatusStarting}))
	must(t, st.InsertOp(ctx, &store.OpRow{ID: "op", Kind: "vm.start", Subject: "web", SubjectID: "id", PID: 42}))
	_, err = st.ClaimVM(ctx, "id", mvm.VerbPause)
	wantError(t, err, mvm.ErrBusy, `cannot pause "web": another command (vm.start, pid 42) is working on "web"`)
}

func TestSetVMStatus(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	must(t, st.InsertVM(ctx, &mvm.VMInstanceItem{ID: "id", Name: "web", Status: mvm.StatusRunning}))
	for _, tt := range []struct {
		id   string
		from []mvm.VMStatus
		want bool
	}{
		{"id", []mvm.VMStatus{mvm.StatusPaused, mvm.StatusStopped}, false},
		{"id", []mvm.VMStatus{mvm.StatusPaused, mvm.StatusRunning}, true},
		{"id", nil, true},
		{"none", nil, false},
	} {
		moved, err := st.SetVMStatus(ctx, tt.id, mvm.StatusCrashed, "signal 9", tt.from...)
		if err != nil || moved != tt.want {
			t.Errorf("%s from %v: %v, %v", tt.id, tt.from, moved, err)
		}
	}
	v, err := st.GetVM(ctx, "id")
	must(t, err)
	if v.Status != mvm.StatusCrashed || v.StatusReason != "signal 9" {
		t.Errorf("VM is %s: %q", v.Status, v.StatusReason)
	}
}

func TestListVMsUsing(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	for i, v := range []*mvm.VMInstanceItem{
		{ID: "a", Name: "a", ImageID: "x", KernelID: "k", NetworkID: "n", BinaryID: "b"},
		{ID: "b", Name: "b", ImageID: "x", KernelID: "l", NetworkID: "n", BinaryID: "c"},
	} {
		must(t, st.InsertVM(ctx, v))
		if n, err := st.CountVMs(ctx); n != i+1 || err != nil {
			t.Errorf("%d VMs, %v", n, err)
		}
	}
	for _, tt := range []struct {
		use  store.Use
		id   string
		want []string
	}{
		{store.UseImage, "x", []string{"a", "b"}}, {store.UseKernel, "k", []string{"a"}}, {store.UseNetwork, "n", []string{"a", "b"}},
		{store.UseBinary, "c", []string{"b"}}, {store.UseBinary, "d", nil},
	} {
		vms, err := st.ListVMsUsing(ctx, tt.use, tt.id)
		must(t, err)
		var got []string
		for _, v := range vms {
			got = append(got, v.ID)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s %s is used by %v, want %v", tt.use, tt.id, got, tt.want)
		}
	}
}
