package nettest

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

func addTap(t *testing.T, h Host, s network.TapSpec) {
	t.Helper()
	if err := h.AddTap(t.Context(), s); err != nil {
		t.Fatalf("AddTap(%s): %v", s.VMID, err)
	}
}

func wantTaps(t *testing.T, h Host, want ...network.Tap) {
	t.Helper()
	got, err := h.Taps(t.Context())
	if err != nil {
		t.Fatalf("Taps: %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("taps (-want +got):\n%s", diff)
	}
}

// tapState is how a tap shows that is as its spec says.
func tapState(s network.TapSpec) network.Tap {
	return network.Tap{Name: s.Name, VMID: s.VMID, Bridge: s.Bridge, Up: true, Isolated: s.Isolated, Guarded: true}
}

func taps(t *testing.T, h Host) {
	before := interfaces(t, h)
	ensure(t, h, red)
	wantTaps(t, h)
	one := TapOf("vm1", red, "172.27.0.2")
	for range 2 {
		addTap(t, h, one)
		wantTaps(t, h, tapState(one))
	}
	h.SetDown(one.Name)
	one.Isolated, one.OwnerUID = true, 12345
	addTap(t, h, one)
	wantTaps(t, h, tapState(one))
	one.Isolated = false
	addTap(t, h, one)
	wantTaps(t, h, tapState(one))

	two := TapOf("vm2", red, "172.27.0.3")
	addTap(t, h, two)
	for range 2 {
		if err := h.RemoveTap(t.Context(), network.TapSpec{Name: one.Name, VMID: one.VMID}); err != nil {
			t.Fatalf("RemoveTap: %v", err)
		}
		wantTaps(t, h, tapState(two))
		if h.HasTable(one.Name) {
			t.Error("the guard of a removed tap is still there")
		}
	}
	if err := h.RemoveTap(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, interfaces(t, h)); diff != "" {
		t.Errorf("interfaces before and after:\n%s", diff)
	}
}

// guestRules are the rules of one VM, which come and go with its tap.
func guestRules(t *testing.T, h Host) {
	ensure(t, h, red)
	tap := TapOf("vm1", red, "172.27.0.2")
	plain := tap
	publish := func(port int) network.Publish { return network.Publish{Protocol: "tcp", HostPort: port, GuestPort: 80} }
	want := func(s network.TapSpec, right bool, rules []mvm.FirewallRule) {
		t.Helper()
		o, err := h.ObserveTap(t.Context(), s)
		if err != nil || o.Right != right {
			t.Errorf("right is %v, want %v: %v", o.Right, right, err)
		}
		if diff := cmp.Diff(rules, o.Rules, ignoreText); diff != "" {
			t.Errorf("rules of the VM (-want +got):\n%s", diff)
		}
	}
	want(tap, false, nil)
	addTap(t, h, tap)
	want(tap, true, nil)
	for _, change := range []func(){
		func() { tap.Publish = []network.Publish{publish(8080), publish(8081)} },
		func() { tap.Isolated = true },
		func() {
			tap.Publish = []network.Publish{{Protocol: "udp", HostAddr: netip.MustParseAddr("127.0.0.1"), HostPort: 53, GuestPort: 5300}}
		},
	} {
		before := network.GuestRules(tap)
		change()
		want(tap, false, before)
		addTap(t, h, tap)
		want(tap, true, network.GuestRules(tap))
	}
	addTap(t, h, plain)
	want(plain, true, nil)
	addTap(t, h, tap)
	if err := h.RemoveTap(t.Context(), network.TapSpec{Name: tap.Name, VMID: tap.VMID}); err != nil {
		t.Fatal(err)
	}
	want(tap, false, nil)
	if h.HasTable(tap.Name) {
		t.Error("a removed VM's rules are still there")
	}
	for _, bad := range []network.Publish{{}, {Protocol: "sctp", HostPort: 1, GuestPort: 1}, {Protocol: "tcp", HostPort: 0, GuestPort: 1}, {Protocol: "tcp", HostPort: 1, GuestPort: 65536}} {
		tap.Publish = []network.Publish{bad}
		wantKind(t, h.AddTap(t.Context(), tap), mvm.ErrInvalid)
	}
}

func tapBridge(t *testing.T, h Host) {
	tap := TapOf("vm1", red, "172.27.0.2")
	wantKind(t, h.AddTap(t.Context(), tap), mvm.ErrNotFound)
	wantLink(t, h, tap.Name, false)
	h.AddLink(red.Bridge)
	wantKind(t, h.AddTap(t.Context(), tap), mvm.ErrExists)
	wantLink(t, h, tap.Name, false)
}

func foreignTap(t *testing.T, h Host) {
	ensure(t, h, red)
	tap := TapOf("vm1", red, "172.27.0.2")
	h.AddLink(tap.Name)
	wantKind(t, h.AddTap(t.Context(), tap), mvm.ErrExists)
	wantTaps(t, h)
	if h.HasTable(tap.Name) {
		t.Error("a refused tap left a guard")
	}
	if err := h.RemoveTap(t.Context(), tap); err != nil {
		t.Errorf("removal beside a foreign device: %v", err)
	}
	wantLink(t, h, tap.Name, true)
	h.DelLink(tap.Name)

	addTap(t, h, tap)
	other := tap
	other.VMID = "vm-of-another-cache"
	wantKind(t, h.AddTap(t.Context(), other), mvm.ErrExists)
	if err := h.RemoveTap(t.Context(), other); err != nil {
		t.Error(err)
	}
	wantTaps(t, h, tapState(tap))
}

func tapsOutlive(t *testing.T, h Host) {
	ensure(t, h, red)
	tap := TapOf("vm1", red, "172.27.0.2")
	tap.Isolated = true
	addTap(t, h, tap)
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Fatal(err)
	}
	alone := tapState(tap)
	alone.Bridge, alone.Isolated = "", false
	wantTaps(t, h, alone)
	ensure(t, h, red)
	addTap(t, h, tap)
	wantTaps(t, h, tapState(tap))
}

// fullBridge fills a bridge, and then there is no room for a VM.
func fullBridge(t *testing.T, h Host) {
	ensure(t, h, red)
	h.AddPorts(red.Bridge, network.MaxPorts-1)
	one, two := TapOf("vm1", red, "172.27.0.2"), TapOf("vm2", red, "172.27.0.3")
	addTap(t, h, one)
	wantKind(t, h.AddTap(t.Context(), two), mvm.ErrUnavailable)
	addTap(t, h, one) // which is there
	if err := errors.Join(h.RemoveTap(t.Context(), two), h.RemoveTap(t.Context(), one)); err != nil {
		t.Fatal(err)
	}
	wantLink(t, h, two.Name, false)
	addTap(t, h, two)
}
