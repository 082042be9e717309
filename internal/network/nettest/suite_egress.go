package nettest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// wantTap says whether a tap's rules are those of its spec.
func wantTap(t *testing.T, h Host, s network.TapSpec, right bool) {
	t.Helper()
	o, err := h.ObserveTap(t.Context(), s)
	if err != nil || o.Right != right {
		t.Errorf("right is %v, want %v: %v", o.Right, right, err)
	}
	var want []mvm.FirewallRule
	want = append(append(want, network.EgressRules(s)...), network.GuestRules(s)...)
	if diff := cmp.Diff(want, o.Rules); right && diff != "" {
		t.Errorf("rules of the VM (-want +got):\n%s", diff)
	}
}

// egressRules come and go with a VM's tap, and follow its list.
func egressRules(t *testing.T, h Host) {
	ensure(t, h, red)
	tap := TapOf("vm1", red, "172.27.0.2")
	short := network.TapSpec{Name: tap.Name, VMID: tap.VMID}
	addrs := []network.OpenAddr{{Addr: netip.MustParseAddr("192.0.2.1"), For: time.Minute}}
	wantKind(t, h.OpenEgress(t.Context(), short, addrs), mvm.ErrNotFound)
	addTap(t, h, tap)
	wantTap(t, h, tap, true)
	wantKind(t, h.OpenEgress(t.Context(), short, addrs), mvm.ErrNotFound)
	for _, e := range []network.Egress{
		{},
		{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("0.0.0.0/0")}},
		{Names: true},
	} {
		tap.Egress = &e
		wantTap(t, h, tap, false)
		addTap(t, h, tap)
		wantTap(t, h, tap, true)
		d, err := h.Denials(t.Context(), short)
		if diff := cmp.Diff(network.Denials{To: []network.Denial{}}, d); err != nil || diff != "" {
			t.Errorf("nothing was sent, and denied was %v:\n%s", err, diff)
		}
	}
	for range 2 {
		if err := h.OpenEgress(t.Context(), short, addrs); err != nil {
			t.Errorf("OpenEgress: %v", err)
		}
	}
	for _, bad := range []network.OpenAddr{{Addr: addrs[0].Addr}, {For: time.Minute}, {Addr: netip.MustParseAddr("::1"), For: time.Minute}} {
		wantKind(t, h.OpenEgress(t.Context(), short, []network.OpenAddr{bad}), mvm.ErrInvalid)
	}
	wantKind(t, h.OpenEgress(t.Context(), network.TapSpec{}, addrs), mvm.ErrInvalid)
	if !h.HasTable(network.EgressTable(tap.Name)) {
		t.Error("there is no table")
	}
	h.FlushTable(network.EgressTable(tap.Name))
	wantTap(t, h, tap, false)
	addTap(t, h, tap)
	wantTap(t, h, tap, true)
	tap.Egress = nil
	addTap(t, h, tap)
	wantTap(t, h, tap, true)
	if h.HasTable(network.EgressTable(tap.Name)) {
		t.Error("a VM without limits has a table")
	}
	tap.Egress = &network.Egress{Names: true}
	addTap(t, h, tap)
	if err := h.RemoveTap(t.Context(), short); err != nil || h.HasTable(network.EgressTable(tap.Name)) {
		t.Errorf("removed, and a table is left: %v", err)
	}
	h.AddTable(network.EgressTable(tap.Name))
	if err := h.RemoveTap(t.Context(), short); err != nil || !h.HasTable(network.EgressTable(tap.Name)) {
		t.Errorf("somebody else's table was removed: %v", err)
	}
	tap.Egress = &network.Egress{Networks: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}}
	wantKind(t, h.AddTap(t.Context(), tap), mvm.ErrInvalid)
}

// limits come and go with a VM's tap, too.
func limits(t *testing.T, h Host) {
	ensure(t, h, red)
	tap := TapOf("vm1", red, "172.27.0.2")
	for _, l := range []network.Limit{
		{}, {BytesPerSec: 10 << 20}, {BytesPerSec: 10 << 20, BurstBytes: 100 << 20}, {BytesPerSec: 1 << 10}, {PacketsPerSec: 500},
		{BytesPerSec: 20 << 30, PacketsPerSec: 1, BurstBytes: 1}, {PacketsPerSec: 501}, {},
	} {
		changed := l != tap.Limit
		tap.Limit = l
		if changed {
			wantTap(t, h, tap, false)
		}
		addTap(t, h, tap)
		wantTap(t, h, tap, true)
		wantTaps(t, h, tapState(tap))
	}
	for _, bad := range []network.Limit{{BytesPerSec: -1}, {PacketsPerSec: -1}, {BurstBytes: 1}} {
		tap.Limit = bad
		wantKind(t, h.AddTap(t.Context(), tap), mvm.ErrInvalid)
	}
}
