package api

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/linux"
	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
)

// What a VM may reach is held on every path that starts one.
func TestEgressIsKept(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	list := []string{"*.a.org", "10.0.0.0/8"}
	held := func(what, name string, want []string) {
		t.Helper()
		wantEgress(t, m, what, mustVM(t, m, name), want)
		if got := mustInspect(t, m, name).Networking.Egress; got != mvm.EgressText(want) {
			t.Errorf("%s: inspect says %q", what, got)
		}
	}
	for _, in := range []VMCreateInput{{Name: "free"}, {Name: "none", Egress: []string{}}, {Name: "few", Egress: []string{"10.0.0.0/8", "*.A.org"}}} {
		if _, err := m.VM.Create(ctx, in); err != nil {
			t.Fatal(err)
		}
	}
	held("created", "free", nil)
	held("created", "none", []string{})
	held("created", "few", list)
	for _, name := range []string{"few", "none"} {
		if _, err := m.VM.Stop(ctx, vmSel(name)); err != nil {
			t.Fatal(err)
		}
		if _, err := m.VM.Start(ctx, vmSel(name)); err != nil {
			t.Fatal(err)
		}
	}
	held("started again", "few", list)
	held("started again", "none", []string{})
	for name, want := range map[string][]string{"few": list, "none": {}, "free": nil} {
		cfg := must(m.VM.Export(ctx, VMInput{Identifiers: []string{name}}))(t)
		text := must(MarshalVMExport(cfg))(t)
		read := must(ParseVMExport(text))(t)
		if _, err := m.VM.Import(ctx, VMImportInput{Config: read, Name: "copy-" + name}); err != nil {
			t.Fatal(err)
		}
		held("imported", "copy-"+name, want)
	}
	if _, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "few", Name: "s"}); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][]string{{"b.org"}, {}, nil, list} {
		if _, err := m.VM.Update(ctx, VMUpdateInput{Identifiers: []string{"few"}, Egress: &change}); err != nil {
			t.Fatal(err)
		}
		held("updated", "few", change)
	}
	// A change that fails leaves what was before.
	w.names.fail = errors.New("no server")
	bad := []string{"c.org"}
	if _, err := m.VM.Update(ctx, VMUpdateInput{Identifiers: []string{"few"}, Egress: &bad}); err == nil {
		t.Error("updated without a server")
	}
	w.names.fail = nil
	held("after a change that failed", "few", list)
	_, err := m.VM.Update(ctx, VMUpdateInput{Identifiers: []string{"few"}, Egress: &[]string{"10.0.0.1/8"}})
	refused(t, err, mvm.ErrInvalid, "host bits")
	_, err = m.VM.Create(ctx, VMCreateInput{Name: "bad", Egress: []string{"::1"}})
	refused(t, err, mvm.ErrUnsupported, "IPv6")
	_, err = m.VM.Create(ctx, VMCreateInput{Name: "bad", DNSServer: "nope"})
	refused(t, err, mvm.ErrInvalid, "nope")
}

// wantEgress looks at what the kernel lets a VM reach.
func wantEgress(t *testing.T, m *Client, what string, vm *mvm.VMInstanceItem, want []string) {
	t.Helper()
	n := must(m.core.st.GetNetwork(t.Context(), vm.NetworkID))(t)
	spec := must(tapSpec(vm, n))(t)
	wanted := network.EgressRules(network.TapSpec{VMID: vm.ID, VMName: vm.Name, NetworkID: n.ID, Bridge: n.Bridge, IP: spec.IP, Egress: egressOf(&mvm.VMInstanceItem{Options: mvm.VMOptions{Egress: want}})})
	o := must(m.core.net.ObserveTap(t.Context(), spec))(t)
	if diff := cmp.Diff(wanted, o.Rules); diff != "" || !o.Right {
		t.Errorf("%s, right %v:\n%s", what, o.Right, diff)
	}
}

// starting tells of each VM that is about to run.
type starting struct {
	*liveDriver
	each func(vmm.Launch)
}

func (d *starting) Start(ctx context.Context, l vmm.Launch) (vmm.Machine, error) {
	d.each(l)
	return d.liveDriver.Start(ctx, l)
}

// Each VM that is restored at once with others may reach what the first one could, and
// nothing else, from before its first instruction on.
func TestRestoreHoldsEgress(t *testing.T) {
	for _, kernel := range []string{"fake", "real"} {
		t.Run(kernel, func(t *testing.T) {
			w := newWorld(t)
			m := w.open()
			if kernel == "real" {
				testenv.Require(t, "root", "netns", "nft", "ip")
				m.core.net = network.With(nettest.NewHost(t, linux.New()), m.core.firewallBackend)
			}
			w.stock(m)
			ctx := t.Context()
			list := []string{"*.a.org", "10.0.0.0/8"}
			if _, err := m.VM.Create(ctx, VMCreateInput{Name: "few", Egress: list}); err != nil {
				t.Fatal(err)
			}
			(&testGuest{}).serve(w, m)
			if _, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "few", Name: "warm"}); err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var seen []string
			driver := &starting{w.driver, func(l vmm.Launch) {
				mu.Lock()
				defer mu.Unlock()
				vm := must(m.core.st.GetVM(ctx, l.ID))(t)
				wantEgress(t, m, "before "+vm.Name+" runs", vm, list)
				seen = append(seen, vm.Name)
			}}
			m.core.qemu = func() vmm.Driver { return driver }
			two := 2
			res, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "warm", Name: "copy", Count: &two, Resume: true})
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(seen)
			if !slices.Equal(seen, []string{"copy-1", "copy-2"}) {
				t.Errorf("started were %q", seen)
			}
			for _, vm := range res.VMs {
				wantEgress(t, m, vm.Name+" runs", vm, list)
			}
			if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"few", "copy-1", "copy-2"}, Force: true}); err != nil {
				t.Error(err)
			}
		})
	}
}

func mustInspect(t *testing.T, m *Client, name string) *VMInspect {
	t.Helper()
	return must(m.VM.Inspect(t.Context(), VMInput{Identifiers: []string{name}}))(t)
}

func TestNetworkDenials(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", Egress: []string{"10.0.0.0/8"}}); err != nil {
		t.Fatal(err)
	}
	in := VMInput{Identifiers: []string{"web"}}
	want := &NetworkDenials{VM: "web", Status: mvm.StatusRunning, Egress: "10.0.0.0/8", To: []NetworkDenial{}}
	same := func() {
		t.Helper()
		got, err := m.Network.Denials(ctx, in)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	same()
	at := time.Date(2026, 11, 26, 12, 0, 0, 5, time.UTC)
	id := mustVM(t, m, "web").ID
	w.net.Deny(id, network.Denial{Addr: netip.MustParseAddr("192.0.2.1"), Protocol: 6, Port: 443, Packets: 2, Bytes: 120, Last: at})
	w.net.Deny(id, network.Denial{Addr: netip.MustParseAddr("192.0.2.2"), Protocol: 132, Packets: 1, Bytes: 60, Last: at})
	want.Packets, want.Bytes = 3, 180
	want.To = []NetworkDenial{
		{Address: "192.0.2.1", Protocol: "tcp", Port: 443, Packets: 2, Bytes: 120, LastAt: "2026-11-26T12:00:00.000Z"},
		{Address: "192.0.2.2", Protocol: "132", Packets: 1, Bytes: 60, LastAt: "2026-11-26T12:00:00.000Z"},
	}
	same()
	if _, err := m.VM.Stop(ctx, vmSel("web")); err != nil {
		t.Fatal(err)
	}
	want = &NetworkDenials{VM: "web", Status: mvm.StatusStopped, Egress: "10.0.0.0/8", To: []NetworkDenial{}}
	same()
	_, err := m.Network.Denials(ctx, VMInput{Identifiers: []string{"nosuch"}})
	refused(t, err, mvm.ErrNotFound, "nosuch")
	w.root = false
	_, err = m.Network.Denials(ctx, in)
	refused(t, err, mvm.ErrPrivilege, "reading what was denied needs root")
}
