package nettest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// Host is a host's networking: our Kernel, and what other programs do beside
// it. Tables are what our rules of that name would stand in, whatever the backend.
type Host interface {
	network.Kernel
	AddLink(name string)
	AddPorts(bridge string, n int)
	DelLink(name string)
	SetDown(name string)
	Tables
}

// Suite holds a Kernel to the specification of the interface. newHost returns a
// host without networks that does not forward.
func Suite(t *testing.T, newHost func(t *testing.T) Host) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, h Host)
	}{
		{"ensure makes everything once", ensureOnce},
		{"a network without NAT leaves forwarding alone", isolatedNetwork},
		{"removal is repeatable", removeTwice},
		{"what others remove is mended", mend},
		{"rules follow the spec", followSpec},
		{"a foreign device is refused and untouched", foreignDevice},
		{"a foreign table is refused and untouched", foreignTable},
		{"another cache's network is refused and untouched", otherCache},
		{"networks are independent", twoNetworks},
		{"taps come and go", taps},
		{"a VM's rules come and go with its tap", guestRules},
		{"what a VM may reach follows its list", egressRules},
		{"limits come and go with a tap", limits},
		{"ports of the host turn forwarding on", publishing},
		{"taps need a bridge of ours", tapBridge},
		{"a foreign tap is refused and untouched", foreignTap},
		{"taps outlive their bridge", tapsOutlive},
		{"the rules of a NoCloud server come and go", noCloud},
		{"rules move from one backend to the other", backends},
		{"a full bridge is told", fullBridge},
		{"a cancelled context stops everything", cancelled},
		{"an incomplete spec is refused", invalidSpecs},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newHost(t)) })
	}
}

// SpecOf returns the spec of a network with NAT for tests.
func SpecOf(name, subnet string) network.Spec {
	p := netip.MustParsePrefix(subnet)
	return network.Spec{NetworkID: "id-of-" + name, Name: name, Bridge: network.BridgeName(name), Subnet: p, Gateway: p.Addr().Next(), NAT: true}
}

// TapOf returns the spec of a VM's tap for tests.
func TapOf(vm string, s network.Spec, ip string) network.TapSpec {
	mac, _ := network.GuestMAC("02:FC", vm, 0)
	return network.TapSpec{Name: network.TapName(vm), Bridge: s.Bridge, NetworkID: s.NetworkID, MAC: mac, IP: netip.MustParseAddr(ip), VMID: vm, VMName: "name-of-" + vm}
}

var red = SpecOf("red", "172.27.0.0/24")

func ensure(t *testing.T, h Host, s network.Spec) []network.Change {
	t.Helper()
	changes, err := h.EnsureNetwork(t.Context(), s)
	if err != nil {
		t.Fatalf("EnsureNetwork(%s): %v", s.Name, err)
	}
	return changes
}

func observe(t *testing.T, h Host, s network.Spec) network.Observed {
	t.Helper()
	o, err := h.Observe(t.Context(), s)
	if err != nil {
		t.Fatalf("Observe(%s): %v", s.Name, err)
	}
	return o
}

func wantActive(t *testing.T, h Host, s network.Spec) {
	t.Helper()
	o := observe(t, h, s)
	if !o.Active() || o.Foreign || !o.Right {
		t.Errorf("network %s is not active: %+v", s.Name, o)
	}
	if diff := cmp.Diff(network.Rules(s), o.Rules, ignoreText); diff != "" {
		t.Errorf("rules of network %s (-want +got):\n%s", s.Name, diff)
	}
}

// ignoreText leaves out the notation of rules, which is the backend's.
var ignoreText = cmpopts.IgnoreFields(mvm.FirewallRule{}, "CommandString")

func wantKind(t *testing.T, err error, kind mvm.Kind) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got error %v, want kind %q", err, kind)
	} else if mvm.HintOf(err) == "" {
		t.Errorf("error %v has no hint", err)
	}
}

func interfaces(t *testing.T, h Host) []string {
	t.Helper()
	names, err := h.Interfaces(t.Context())
	if err != nil {
		t.Fatalf("Interfaces: %v", err)
	}
	return names
}

func wantLink(t *testing.T, h Host, name string, want bool) {
	t.Helper()
	if got := slices.Contains(interfaces(t, h), name); got != want {
		t.Errorf("interface %s is there: %v, want %v", name, got, want)
	}
}

func ensureOnce(t *testing.T, h Host) {
	if o := observe(t, h, red); o.Exists || o.Foreign || o.Forwarding || len(o.Rules) != 0 {
		t.Fatalf("a new host has the network: %+v", o)
	}
	changes := ensure(t, h, red)
	if !slices.Contains(changes, network.Change{What: network.ForwardingSysctl, Old: "0", New: "1"}) {
		t.Errorf("turning forwarding on was not reported: %+v", changes)
	}
	wantActive(t, h, red)
	if !observe(t, h, red).Forwarding {
		t.Error("a network with NAT, and the host does not forward")
	}
	routes, err := h.HostRoutes(t.Context())
	if want := (network.Route{Dst: red.Subnet, Interface: red.Bridge}); err != nil || !slices.Contains(routes, want) {
		t.Errorf("routes are %v (%v), want %v among them", routes, err, want)
	}
	addrs, err := h.HostAddresses(t.Context())
	for _, want := range []network.Address{{Prefix: netip.PrefixFrom(red.Gateway, 24), Interface: red.Bridge}, {Prefix: netip.MustParsePrefix("127.0.0.1/8"), Interface: "lo"}} {
		if err != nil || !slices.Contains(addrs, want) {
			t.Errorf("addresses are %v (%v), want %v among them", addrs, err, want)
		}
	}
	if changes := ensure(t, h, red); len(changes) != 0 {
		t.Errorf("ensuring again changed %+v", changes)
	}
}

func isolatedNetwork(t *testing.T, h Host) {
	s := red
	s.NAT = false
	ensure(t, h, s)
	wantActive(t, h, s)
	if observe(t, h, s).Forwarding {
		t.Error("a network without NAT turned forwarding on")
	}
}

func publishing(t *testing.T, h Host) {
	s := red
	s.NAT = false
	ensure(t, h, s)
	s.Published, s.Loopback = true, true
	if observe(t, h, s).Right {
		t.Error("a network with published ports needs nothing more than one without")
	}
	if changes := ensure(t, h, s); len(changes) != 2 {
		t.Errorf("changed was %+v", changes)
	}
	wantActive(t, h, s)
	if changes := ensure(t, h, s); len(changes) != 0 {
		t.Errorf("ensuring again changed %+v", changes)
	}
}

func removeTwice(t *testing.T, h Host) {
	before := interfaces(t, h)
	ensure(t, h, red)
	for i := range 2 {
		if err := h.RemoveNetwork(t.Context(), red); err != nil {
			t.Fatalf("removal %d: %v", i+1, err)
		}
		if o := observe(t, h, red); o.Exists || len(o.Rules) != 0 {
			t.Errorf("after removal %d there is %+v", i+1, o)
		}
	}
	if diff := cmp.Diff(before, interfaces(t, h)); diff != "" || h.HasTable(red.Bridge) {
		t.Errorf("table left: %v; interfaces before and after:\n%s", h.HasTable(red.Bridge), diff)
	}
	ensure(t, h, red)
	wantActive(t, h, red)
}

func mend(t *testing.T, h Host) {
	for _, c := range []struct {
		what   string
		damage func()
		shows  func(network.Observed) bool
	}{
		{"bridge removed", func() { h.DelLink(red.Bridge) }, func(o network.Observed) bool { return !o.Exists && !o.Active() }},
		{"bridge down", func() { h.SetDown(red.Bridge) }, func(o network.Observed) bool { return o.Exists && !o.Up && !o.Active() }},
		{"rules flushed", func() { h.FlushTable(red.Bridge) }, func(o network.Observed) bool { return o.Active() && len(o.Rules) == 0 }},
	} {
		ensure(t, h, red)
		c.damage()
		if o := observe(t, h, red); o.Right || !c.shows(o) {
			t.Errorf("%s, and observed is %+v", c.what, o)
		}
		if changes := ensure(t, h, red); len(changes) == 0 {
			t.Errorf("%s, and mending it reports no change", c.what)
		}
		wantActive(t, h, red)
	}
}

func followSpec(t *testing.T, h Host) {
	ensure(t, h, red)
	s := red
	s.NATGateways = []string{"eth0", "wlan0"}
	if len(ensure(t, h, s)) != 1 {
		t.Error("new uplinks were not one change")
	}
	wantActive(t, h, s)
	s.NAT = false
	ensure(t, h, s)
	wantActive(t, h, s)
	d := network.Diff(network.Rules(red), observe(t, h, s).Rules)
	if len(d.Added) != 3 || len(d.Removed) != 0 || len(d.Kept) == 0 {
		t.Errorf("between no NAT and NAT there are %d added, %d removed, %d kept", len(d.Added), len(d.Removed), len(d.Kept))
	}
}

// backends moves all kinds of rules back and forth. Where the other backend's
// programs are missing it cannot.
func backends(t *testing.T, h Host) {
	s := red
	tap, plain := TapOf("vm1", red, "172.27.0.2"), TapOf("vm2", red, "172.27.0.3")
	tap.Publish = []network.Publish{{Protocol: "tcp", HostPort: 80, GuestPort: 80}}
	nc := NoCloudOf("vm1", red, "172.27.0.2", 8001)
	for _, b := range []network.Backend{network.NFTables, network.IPTables, network.NFTables} {
		s.Backend, tap.Backend, plain.Backend, nc.Backend = b, b, b, b
		if o := observe(t, h, s); o.Right {
			t.Errorf("the rules are in %s already", b)
		}
		if _, err := h.EnsureNetwork(t.Context(), s); b == network.IPTables && errors.Is(err, mvm.ErrUnavailable) {
			t.Skipf("needs iptables: %v", err)
		}
		addTap(t, h, tap)
		addTap(t, h, plain)
		if err := h.AllowNoCloud(t.Context(), nc); err != nil {
			t.Fatal(err)
		}
		wantActive(t, h, s)
		for _, v := range []network.TapSpec{tap, plain} {
			if o, err := h.ObserveTap(t.Context(), v); err != nil || !o.Right {
				t.Errorf("with %s, right is %v, %v", b, o.Right, err)
			}
		}
		if changes := ensure(t, h, s); len(changes) != 0 {
			t.Errorf("with %s, ensuring again changed %v", b, changes)
		}
		other := s
		if other.Backend = network.IPTables; b == network.IPTables {
			other.Backend = network.NFTables
		}
		if o := observe(t, h, other); o.Right || len(o.Rules) > 0 {
			t.Errorf("with %s, %s has %v", b, other.Backend, o.Rules)
		}
	}
	s.Backend = "pf"
	_, err := h.EnsureNetwork(t.Context(), s)
	wantKind(t, err, mvm.ErrInvalid)
	s.Backend = ""
	if err := errors.Join(h.RemoveNoCloud(t.Context(), nc), h.RemoveTap(t.Context(), tap), h.RemoveTap(t.Context(), plain), h.RemoveNetwork(t.Context(), s)); err != nil {
		t.Fatal(err)
	}
	if h.HasTable(red.Bridge) || h.HasTable(tap.Name) || h.HasTable(nc.Table()) {
		t.Error("rules are left")
	}
}

func foreignDevice(t *testing.T, h Host) {
	h.AddLink(red.Bridge)
	_, err := h.EnsureNetwork(t.Context(), red)
	wantKind(t, err, mvm.ErrExists)
	if o := observe(t, h, red); !o.Foreign || o.Exists || o.Forwarding || h.HasTable(red.Bridge) {
		t.Errorf("a refusal had effects: %+v", o)
	}
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Errorf("removal beside a foreign device: %v", err)
	}
	wantLink(t, h, red.Bridge, true)
}

func foreignTable(t *testing.T, h Host) {
	h.AddTable(red.Bridge)
	_, err := h.EnsureNetwork(t.Context(), red)
	wantKind(t, err, mvm.ErrExists)
	wantLink(t, h, red.Bridge, false)
	if o := observe(t, h, red); o.Exists || len(o.Rules) != 0 {
		t.Errorf("somebody else's table shows as ours: %+v", o)
	}
	if err := h.RemoveNetwork(t.Context(), red); err != nil || !h.HasTable(red.Bridge) {
		t.Errorf("removal beside a foreign table: %v, table is there: %v", err, h.HasTable(red.Bridge))
	}
}

func otherCache(t *testing.T, h Host) {
	ensure(t, h, red)
	other := red
	other.NetworkID = "id-in-another-cache"
	_, err := h.EnsureNetwork(t.Context(), other)
	wantKind(t, err, mvm.ErrExists)
	if err := h.RemoveNetwork(t.Context(), other); err != nil {
		t.Error(err)
	}
	if o := observe(t, h, other); !o.Foreign {
		t.Errorf("another cache's network shows as ours: %+v", o)
	}
	wantActive(t, h, red)
}

func twoNetworks(t *testing.T, h Host) {
	blue := SpecOf("blue-with-a-long-name", "172.27.1.0/24")
	ensure(t, h, red)
	ensure(t, h, blue)
	wantActive(t, h, red)
	wantActive(t, h, blue)
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Fatal(err)
	}
	wantActive(t, h, blue)
}

func cancelled(t *testing.T, h Host) {
	before := interfaces(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := h.EnsureNetwork(ctx, red)
	_, err2 := h.Observe(ctx, red)
	_, err3 := h.Taps(ctx)
	for _, err := range []error{err, err2, err3, h.RemoveNetwork(ctx, red), h.AddTap(ctx, TapOf("vm1", red, "172.27.0.2"))} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled, and the error is %v", err)
		}
	}
	if diff := cmp.Diff(before, interfaces(t, h)); diff != "" {
		t.Errorf("cancelled calls had effects:\n%s", diff)
	}
}

func invalidSpecs(t *testing.T, h Host) {
	for name, s := range map[string]network.Spec{
		"nothing":       {},
		"long bridge":   {NetworkID: "i", Bridge: "mvm-0123456789ab", Subnet: red.Subnet, Gateway: red.Gateway},
		"path bridge":   {NetworkID: "i", Bridge: "../../x", Subnet: red.Subnet, Gateway: red.Gateway},
		"no gateway":    {NetworkID: "i", Bridge: "mvm-x", Subnet: red.Subnet},
		"hostile route": {NetworkID: "i", Bridge: "mvm-x", Subnet: red.Subnet, Gateway: red.Gateway, NATGateways: []string{"a b"}},
	} {
		_, err := h.EnsureNetwork(t.Context(), s)
		_, err2 := h.Observe(t.Context(), s)
		for _, err := range []error{err, err2, h.RemoveNetwork(t.Context(), s)} {
			if !errors.Is(err, mvm.ErrInvalid) {
				t.Errorf("%s: got %v, want it refused", name, err)
			}
		}
	}
	for _, bad := range []network.TapSpec{{}, {Name: "mvmx"}, {VMID: "vm1"}, {Name: "a/b", VMID: "vm1"}} {
		if err := h.RemoveTap(t.Context(), bad); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("removal of tap %+v: got %v, want it refused", bad, err)
		}
	}
	ensure(t, h, red)
	good := TapOf("vm1", red, "172.27.0.2")
	for name, change := range map[string]func(*network.TapSpec){
		"no id":         func(s *network.TapSpec) { s.VMID = "" },
		"long name":     func(s *network.TapSpec) { s.Name = "mvm0123456789abc" },
		"no MAC":        func(s *network.TapSpec) { s.MAC = nil },
		"multicast MAC": func(s *network.TapSpec) { s.MAC = []byte{1, 0, 0, 0, 0, 0} },
		"no IP":         func(s *network.TapSpec) { s.IP = netip.Addr{} },
		"negative uid":  func(s *network.TapSpec) { s.OwnerUID = -1 },
	} {
		bad := good
		change(&bad)
		if err := h.AddTap(t.Context(), bad); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("tap with %s: got %v, want it refused", name, err)
		}
	}
}
