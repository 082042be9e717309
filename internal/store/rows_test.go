package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// The constraints that race_test.go does not have.
func TestTakenInWords(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	port := 8000
	vm := func(id string) *mvm.VMInstanceItem { return &mvm.VMInstanceItem{ID: id, Name: id} }
	with := func(v *mvm.VMInstanceItem, set func(*mvm.VMInstanceItem)) *mvm.VMInstanceItem { set(v); return v }
	must(t, st.InsertVM(ctx, with(vm("a"), func(v *mvm.VMInstanceItem) { v.NocloudNetPort = &port; v.MAC = "02:FC:00:00:00:0A" })))
	for _, tt := range []struct {
		want string
		do   func() error
	}{
		{`the NoCloud port 8000 is used by VM "a"`, func() error {
			return st.InsertVM(ctx, with(vm("b"), func(v *mvm.VMInstanceItem) { v.NocloudNetPort = &port }))
		}},
		{`the MAC address 02:fc:00:00:00:0a is used by VM "a"`, func() error {
			return st.InsertVM(ctx, with(vm("b"), func(v *mvm.VMInstanceItem) { v.MAC = "02:fc:00:00:00:0a" }))
		}},
		{`a VM with the id "a" exists already`, func() error { return st.InsertVM(ctx, with(vm("a"), func(v *mvm.VMInstanceItem) { v.Name = "z" })) }},
		{`a VM named "a" exists already`, func() error {
			must(t, st.InsertVM(ctx, vm("c")))
			return st.UpdateVM(ctx, with(vm("c"), func(v *mvm.VMInstanceItem) { v.Name = "a" }))
		}},
		{`the bridge br0 is used by network "n1"`, func() error {
			must(t, st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "n1", Name: "n1", Subnet: "10.0.1.0/24", Bridge: "br0"}))
			return st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "n2", Name: "n2", Subnet: "10.0.2.0/24", Bridge: "br0"})
		}},
		{`the subnet 10.0.0.0/16 overlaps 10.0.1.0/24 of network "n1"`, func() error {
			return st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "n3", Name: "n3", Subnet: "10.0.0.0/16", Bridge: "br3"})
		}},
		{`the image debian:12 (x86_64) exists already`, twice(ctx, st.InsertImage, func(id string) *mvm.ImageItem {
			return &mvm.ImageItem{ID: id, Type: "debian", Version: "12", Arch: "x86_64"}
		})},
		{`the kernel debian:6.1 (x86_64) exists already`, twice(ctx, st.InsertKernel, func(id string) *mvm.KernelItem {
			return &mvm.KernelItem{ID: id, Type: "debian", Version: "6.1", Arch: "x86_64", BaseName: "vmlinux-debian"}
		})},
		{`firecracker 1.16.1 exists already`, twice(ctx, st.UpsertBinary, func(id string) *mvm.BinaryItem {
			return &mvm.BinaryItem{ID: id, Name: "firecracker", Version: "1.16.1"}
		})},
		{`an SSH key named "me" exists already`, twice(ctx, st.InsertKey, func(id string) *mvm.SSHKeyItem {
			return &mvm.SSHKeyItem{ID: id, Name: "me", Fingerprint: id}
		})},
		{`the key SHA256:abc is known already by the name "f1"`, twice(ctx, st.InsertKey, func(id string) *mvm.SSHKeyItem {
			return &mvm.SSHKeyItem{ID: "f" + id, Name: "f" + id, Fingerprint: "SHA256:abc"}
		})},
		{`a volume named "data" exists already`, twice(ctx, st.InsertVolume, func(id string) *mvm.VolumeItem {
			return &mvm.VolumeItem{ID: id, Name: "data"}
		})},
		{`tcp port 8080 of the host is used by VM "a"`, func() error {
			must(t, st.InsertForward(ctx, &store.Forward{VMID: "a", Protocol: "tcp", HostPort: 8080, GuestPort: 80}))
			must(t, st.InsertForward(ctx, &store.Forward{VMID: "a", Protocol: "udp", HostPort: 8080, GuestPort: 80}))
			return st.InsertForward(ctx, &store.Forward{VMID: "a", Protocol: "tcp", HostPort: 8080, GuestPort: 81})
		}},
		{`tcp port 8080 of the host is used by VM`, func() error {
			return st.InsertForward(ctx, &store.Forward{VMID: "a", Protocol: "tcp", HostAddr: "127.0.0.1", HostPort: 8080, GuestPort: 81})
		}},
	} {
		wantError(t, tt.do(), mvm.ErrExists, tt.want)
	}
	if _, err := st.GetNetwork(ctx, "n3"); mvm.KindOf(err) != mvm.ErrNotFound {
		t.Errorf("the network that overlaps was kept: %v", err)
	}
	wantError(t, st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "n4", Name: "n4", Subnet: "x", Bridge: "br4"}), mvm.ErrInvalid, `"x" is not a subnet`)
}

func twice[T any](ctx context.Context, insert func(context.Context, *T) error, item func(id string) *T) func() error {
	return func() error {
		if err := insert(ctx, item("1")); err != nil {
			return fmt.Errorf("the first: %w", err)
		}
		return insert(ctx, item("2"))
	}
}

// A transaction goes on after a refused insert, and a failed one leaves nothing.
func TestTx(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	must(t, st.InsertVM(ctx, &mvm.VMInstanceItem{ID: "a", Name: "web"}))
	must(t, st.Tx(ctx, func(tx *store.Tx) error {
		wantError(t, tx.InsertVM(ctx, &mvm.VMInstanceItem{ID: "b", Name: "web"}), mvm.ErrExists, "web")
		return tx.InsertVM(ctx, &mvm.VMInstanceItem{ID: "b", Name: "web-2"})
	}))
	boom := errors.New("boom")
	if err := st.Tx(ctx, func(tx *store.Tx) error {
		must(t, tx.DeleteVM(ctx, "a"))
		return boom
	}); !errors.Is(err, boom) {
		t.Errorf("error is %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	err := st.Tx(cancelled, func(tx *store.Tx) error {
		must(t, tx.DeleteVM(tx.Context(), "a"))
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = st.Tx(ctx, func(tx *store.Tx) error { must(t, tx.DeleteVM(ctx, "a")); panic("bug") })
	}()
	if ids := idsOf(t, st.ListVMs); !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("VMs are %v", ids)
	}
}

// Rows that hang on a VM go with it; its volumes are free again.
func TestDeleteVMTakesWhatHangsOnIt(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	vm := "a"
	must(t, st.InsertVM(ctx, &mvm.VMInstanceItem{ID: vm, Name: "web"}))
	must(t, st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "n", Name: "n", Subnet: "10.0.0.0/24", Bridge: "n"}))
	for _, ip := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4"} {
		l := &mvm.NetworkLeaseItem{NetworkID: "n", IPv4: ip, VMID: &vm}
		must(t, st.InsertLease(ctx, l))
		if l.ID == nil || l.LeasedAt == "" {
			t.Errorf("lease has no id or time: %+v", l)
		}
	}
	must(t, st.DeleteLease(ctx, "n", "10.0.0.3"))
	must(t, st.DeleteLease(ctx, "n", "10.0.0.3"))
	for _, list := range []func() ([]*mvm.NetworkLeaseItem, error){
		func() ([]*mvm.NetworkLeaseItem, error) { return st.ListLeases(ctx, "n") },
		func() ([]*mvm.NetworkLeaseItem, error) { return st.ListLeases(ctx, "") },
		func() ([]*mvm.NetworkLeaseItem, error) { return st.ListLeasesOfVM(ctx, vm) },
	} {
		if ls, err := list(); err != nil || len(ls) != 2 || ls[0].IPv4 != "10.0.0.2" || *ls[1].VMID != vm {
			t.Errorf("leases are %v, %v", ls, err)
		}
	}
	must(t, st.InsertForward(ctx, &store.Forward{VMID: vm, Protocol: "tcp", HostPort: 22, GuestPort: 22}))
	must(t, st.InsertVolume(ctx, &mvm.VolumeItem{ID: "v", Name: "data", Status: mvm.VolumeAvailable}))
	must(t, st.AttachVolume(ctx, &mvm.VolumeAttachment{VolumeID: "v", VMID: vm}))
	ghost := "ghost"
	wantError(t, st.InsertLease(ctx, &mvm.NetworkLeaseItem{NetworkID: "n", IPv4: "10.0.0.9", VMID: &ghost}), mvm.ErrConflict, "is gone")

	must(t, st.DeleteVM(ctx, vm))
	ls, err := st.ListLeases(ctx, "")
	must(t, err)
	fs, err := st.ListForwards(ctx, "")
	must(t, err)
	v, err := st.GetVolume(ctx, "v")
	must(t, err)
	if len(ls) != 0 || len(fs) != 0 || v.VMID != nil || v.Status != mvm.VolumeAvailable {
		t.Errorf("left are leases %v, forwards %v, volume %+v", ls, fs, v)
	}
}

func TestLeasesAndForwardsAreFreed(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	vm := "a"
	must(t, st.InsertVM(ctx, &mvm.VMInstanceItem{ID: vm, Name: "web"}))
	must(t, st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "n", Name: "n", Subnet: "10.0.0.0/24", Bridge: "n"}))
	for range 2 {
		must(t, st.InsertLease(ctx, &mvm.NetworkLeaseItem{NetworkID: "n", IPv4: "10.0.0.2", VMID: &vm}))
		must(t, st.DeleteLeasesOfVM(ctx, vm))
		f := &store.Forward{VMID: vm, Protocol: "tcp", HostPort: 22, GuestPort: 22}
		must(t, st.InsertForward(ctx, f))
		got, err := st.ListForwards(ctx, vm)
		if d := cmp.Diff([]*store.Forward{f}, got); d != "" || err != nil {
			t.Error(d, err)
		}
		must(t, st.DeleteForward(ctx, "tcp", "", 22))
	}
}

func TestSeveralDefaultKeys(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	for _, id := range []string{"a", "b", "c"} {
		must(t, st.InsertKey(ctx, &mvm.SSHKeyItem{ID: id, Name: id, Fingerprint: id}))
	}
	check := func(want ...string) {
		t.Helper()
		if got := defaults(t, st.ListKeys); !slices.Equal(got, want) {
			t.Errorf("defaults are %v, want %v", got, want)
		}
	}
	must(t, st.SetDefaultKeys(ctx, "a", "c"))
	check("a", "c")
	wantError(t, st.SetDefaultKeys(ctx, "b", "none"), mvm.ErrNotFound, "none")
	check("a", "c")
	must(t, st.SetDefaultKeys(ctx, "b"))
	check("b")
	must(t, st.SetDefaultKeys(ctx))
	check()
}

// firecracker and qemu each have a default; an insert takes it over, too.
func TestDefaultBinaryPerName(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	for _, id := range []string{"f1", "f2", "q1"} {
		must(t, st.InsertBinary(ctx, &mvm.BinaryItem{ID: id, Name: id[:1], Version: id, IsDefault: true}))
	}
	if got := defaults(t, st.ListBinaries); !slices.Equal(got, []string{"f2", "q1"}) {
		t.Errorf("defaults are %v", got)
	}
	must(t, st.SetDefaultBinary(ctx, "f1"))
	if got := defaults(t, st.ListBinaries); !slices.Equal(got, []string{"f1", "q1"}) {
		t.Errorf("defaults are %v", got)
	}
}

func TestFirewallRules(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	one, two := filled[mvm.FirewallRule](1, []string{"ID"}), filled[mvm.FirewallRule](2, []string{"ID"})
	for _, r := range []*mvm.FirewallRule{one, two} {
		must(t, st.InsertFirewallRule(ctx, r))
	}
	one.IsActive, one.Target = false, "DROP"
	must(t, st.UpdateFirewallRule(ctx, one))
	got, err := st.ListFirewallRules(ctx, "")
	if d := cmp.Diff([]*mvm.FirewallRule{one, two}, got); d != "" || err != nil {
		t.Error(d, err)
	}
	must(t, st.DeleteFirewallRules(ctx, one.NetworkID))
	got, err = st.ListFirewallRules(ctx, two.NetworkID)
	if d := cmp.Diff([]*mvm.FirewallRule{two}, got); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestSettings(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	for _, s := range [][3]string{{"vm", "a", "1"}, {"vm", "b", "2"}, {"net", "a", "3"}, {"vm", "a", "4"}} {
		must(t, st.SetSetting(ctx, s[0], s[1], s[2]))
	}
	check := func(want ...store.SettingValue) {
		t.Helper()
		got, err := st.ListSettings(ctx)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Error(d, err)
		}
	}
	check(store.SettingValue{Category: "net", Key: "a", Value: "3"}, store.SettingValue{Category: "vm", Key: "a", Value: "4"},
		store.SettingValue{Category: "vm", Key: "b", Value: "2"})
	if v, ok, err := st.GetSetting(ctx, "vm", "a"); v != "4" || !ok || err != nil {
		t.Errorf("vm.a is %q %v %v", v, ok, err)
	}
	must(t, st.ResetSetting(ctx, "vm", "a"))
	if v, ok, err := st.GetSetting(ctx, "vm", "a"); v != "" || ok || err != nil {
		t.Errorf("vm.a is %q %v %v", v, ok, err)
	}
	must(t, st.ResetSetting(ctx, "vm", ""))
	check(store.SettingValue{Category: "net", Key: "a", Value: "3"})
	must(t, st.ResetSetting(ctx, "", ""))
	check()
}

func TestHostState(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	type state struct{ Forward bool }
	var got state
	if ok, err := st.GetHostState(ctx, "sysctl", &got); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	for _, want := range []state{{true}, {false}} {
		must(t, st.SetHostState(ctx, "sysctl", want))
		if ok, err := st.GetHostState(ctx, "sysctl", &got); !ok || err != nil || got != want {
			t.Errorf("%v %v %v", got, ok, err)
		}
	}
	var wrong []string
	_, err := st.GetHostState(ctx, "sysctl", &wrong)
	wantError(t, err, mvm.ErrBroken, `host state "sysctl"`)
	must(t, st.DeleteHostState(ctx, "sysctl"))
	if ok, err := st.GetHostState(ctx, "sysctl", &got); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
}

func TestEvents(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	code := 137
	var all []*store.Event
	for i := range 6 {
		e := &store.Event{VMID: fmt.Sprint("vm", i%2), VMName: "web", Kind: "exit", From: "running", To: "crashed", Cause: "signal 9", ExitCode: &code}
		must(t, st.AppendEvent(ctx, e))
		all = append(all, e)
	}
	for _, tt := range []struct {
		vm    string
		limit int
		after int64
		want  []*store.Event
	}{
		{"", 0, 0, all},
		{"", 2, 0, all[4:]},
		{"", 2, all[1].ID, all[2:4]},
		{"", 0, all[1].ID, all[2:]},
		{"vm1", 0, 0, []*store.Event{all[1], all[3], all[5]}},
		{"vm1", 1, all[1].ID, all[3:4]},
		{"none", 0, 0, []*store.Event{}},
	} {
		got, err := st.ListEvents(ctx, tt.vm, tt.limit, tt.after)
		if d := cmp.Diff(tt.want, got); d != "" || err != nil {
			t.Errorf("%+v: %s %v", tt, d, err)
		}
	}
}

func TestFindEvents(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	var all []*store.Event
	for i, name := range []string{"web", "db", "web"} {
		e := &store.Event{VMID: fmt.Sprint("abcd", i), VMName: name, At: fmt.Sprintf("2026-01-0%dT00:00:00.000Z", i+1)}
		must(t, st.AppendEvent(ctx, e))
		all = append(all, e)
	}
	for _, tt := range []struct {
		f    store.EventFilter
		want []*store.Event
	}{
		{store.EventFilter{Name: "web"}, []*store.Event{all[0], all[2]}},
		{store.EventFilter{Name: "abcd1"}, all[1:2]},
		{store.EventFilter{Name: "abcd"}, all},
		{store.EventFilter{Name: "bcd"}, []*store.Event{}},
		{store.EventFilter{Since: "2026-01-02T00:00:00.000Z"}, all[1:]},
		{store.EventFilter{Since: "2026-01-02T00:00:00.000Z", Limit: 1}, all[2:]},
		{store.EventFilter{Name: "web", After: all[0].ID}, all[2:]},
	} {
		got, err := st.FindEvents(ctx, tt.f)
		if d := cmp.Diff(tt.want, got); d != "" || err != nil {
			t.Errorf("%+v: %s %v", tt.f, d, err)
		}
	}
}

func TestWatch(t *testing.T) {
	st := open(t)
	other, err := store.Open(t.Context(), st.Path())
	must(t, err)
	defer other.Close()
	w, err := st.Watch(t.Context())
	must(t, err)
	defer w.Close()
	for _, step := range []struct {
		do   func() error
		want bool
	}{
		{func() error { return nil }, false},
		{func() error { return other.AppendEvent(t.Context(), &store.Event{VMID: "a"}) }, true},
		{func() error { _, err := other.ListEvents(t.Context(), "", 0, 0); return err }, false},
		{func() error { return st.AppendEvent(t.Context(), &store.Event{VMID: "b"}) }, true},
		{func() error { return nil }, false},
	} {
		must(t, step.do())
		if got, err := w.Changed(t.Context()); got != step.want || err != nil {
			t.Errorf("%v, %v, want %v", got, err, step.want)
		}
	}
}

func TestOps(t *testing.T) {
	st := open(t)
	ctx := t.Context()
	row := &store.OpRow{ID: "1", Kind: "vm.create", Subject: "web", SubjectID: "a", Forward: true, Keep: true, PID: 7,
		State: store.OpRunning, Data: []byte("data")}
	must(t, st.InsertOp(ctx, row))
	must(t, st.InsertOp(ctx, &store.OpRow{ID: "2", SubjectID: "b"}))
	steps := []store.OpStepRow{{N: 0, Kind: "dir", Data: []byte("{}")}, {N: 1, Kind: "tap", Data: []byte("[]")}}
	for _, s := range steps {
		must(t, st.InsertOpStep(ctx, "1", s))
	}
	got, err := st.ListOpSteps(ctx, "1")
	if d := cmp.Diff(steps, got); d != "" || err != nil {
		t.Error(d, err)
	}
	must(t, st.DeleteOpStep(ctx, "1", 1))
	must(t, st.FailOp(ctx, "1", "why"))
	row.State, row.Reason = store.OpFailed, "why"
	rows, err := st.ListOps(ctx, "a")
	if d := cmp.Diff([]*store.OpRow{row}, rows); d != "" || err != nil {
		t.Error(d, err)
	}
	if rows, err := st.ListOps(ctx, ""); len(rows) != 2 || rows[0].ID != "1" || err != nil {
		t.Errorf("%v %v", rows, err)
	}
	must(t, st.DeleteOp(ctx, "1"))
	if left, err := st.ListOpSteps(ctx, "1"); len(left) != 0 || err != nil {
		t.Errorf("%v %v", left, err)
	}
	_, err = st.GetOp(ctx, "1")
	wantError(t, err, mvm.ErrNotFound, `no operation has the id "1"`)
}
