package linux

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// With firewalld's rules in the way guests get out and in by its zone for what is
// trusted; what our own rules drop stays dropped; and nothing is left.
func TestFirewalld(t *testing.T) {
	for name, start := range map[string]func(testing.TB, *nettest.Namespace) *nettest.Firewalld{
		"real": nettest.NewFirewalld, "fake": nettest.FakeFirewalld,
	} {
		for _, b := range []network.Backend{network.NFTables, network.IPTables} {
			t.Run(name+"/"+string(b), func(t *testing.T) {
				t.Parallel()
				k := New()
				h := nettest.NewHost(t, network.With(k, func(context.Context) (network.Backend, error) { return b, nil }))
				fd := start(t, h.Namespace)
				k.bus = fd.Bus
				besideFirewalld(t, h, fd)
			})
		}
	}
}

func besideFirewalld(t *testing.T, h *nettest.RealHost, fd *nettest.Firewalld) {
	out := nettest.Outside(t, h.Namespace)
	outside := out.ServePeer(nettest.OutsideAddr.String() + ":80")
	h.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")
	red, blue := nettest.SpecOf("red", "172.27.0.0/24"), nettest.SpecOf("blue", "172.27.1.0/24")
	red.DNS, red.Published, red.Loopback = true, true, true
	changes, err := h.EnsureNetwork(t.Context(), red)
	if err != nil || !slices.Contains(changes, network.Change{What: "zone trusted of firewalld", New: red.Bridge}) {
		t.Fatalf("made: %+v, %v", changes, err)
	}
	mustEnsure(t, h, blue)
	tap, tap2 := nettest.TapOf("vm1", red, "172.27.0.2"), nettest.TapOf("vm2", blue, "172.27.1.2")
	tap.Publish = []network.Publish{{Protocol: "tcp", HostPort: 8080, GuestPort: 80}}
	if err := errors.Join(h.AddTap(t.Context(), tap), h.AddTap(t.Context(), tap2)); err != nil {
		t.Fatal(err)
	}
	mend := func() {
		t.Helper()
		mustEnsure(t, h, red)
		mustEnsure(t, h, blue)
		if err := errors.Join(h.AddTap(t.Context(), tap), h.AddTap(t.Context(), tap2)); err != nil {
			t.Fatal(err)
		}
	}
	guest, other := nettest.VM(t, h.Namespace, tap, red), nettest.VM(t, h.Namespace, tap2, blue)
	guest.ServePeer("172.27.0.2:80")
	other.ServePeer("172.27.1.2:80")
	h.ServePeer("172.27.0.1:53")
	h.ServePeer("0.0.0.0:22")
	h.ServePeer("0.0.0.0:8002")
	check := func(when string) {
		t.Helper()
		wantPeer(t, when+": to outside", guest, outside, nettest.HostAddr.String())
		wantPeer(t, when+": to its DNS", guest, "172.27.0.1:53", "172.27.0.2")
		wantPeer(t, when+": from outside to a published port", out, nettest.HostAddr.String()+":8080", nettest.OutsideAddr.String())
		wantPeer(t, when+": to another network", guest, "172.27.1.2:80", "")
		wantPeer(t, when+": to a service of the host that firewalld lets in", guest, "172.27.0.1:22", "")
		wantPeer(t, when+": to another service of the host", guest, "172.27.0.1:8002", "")
		wantZone(t, h, red, network.Passage{Program: "firewalld", Place: "zone trusted of firewalld", Open: true, Ours: true, Kept: 1})
	}
	check("made")
	if changes, err := h.EnsureNetwork(t.Context(), red); err != nil || len(changes) > 0 {
		t.Errorf("ensured again: %v, %v", changes, err)
	}

	fd.Reload() // which forgets what is in no file of its own, and with iptables, all rules of others
	wantPeer(t, "after a reload: to outside", guest, outside, "")
	wantPeer(t, "after a reload: to its DNS", guest, "172.27.0.1:53", "")
	wantZone(t, h, red, network.Passage{Program: "firewalld", Place: "zone trusted of firewalld", Ours: true, Added: 1})
	mend()
	check("mended")

	// Somebody wants it to be in another zone: then it is.
	fd.Put("trusted", red.Bridge, false)
	fd.Put("work", red.Bridge, true)
	mustEnsure(t, h, red)
	wantZone(t, h, red, network.Passage{Program: "firewalld", Place: "zone work of firewalld, which somebody has put " + red.Bridge + " into, does not accept everything"})
	if got := fd.ZoneOf(red.Bridge); got != "work" {
		t.Errorf("it was put into zone %q", got)
	}
	fd.Put("work", red.Bridge, false)
	mustEnsure(t, h, red)

	if err := errors.Join(h.RemoveTap(t.Context(), tap), h.RemoveNetwork(t.Context(), red), h.RemoveNetwork(t.Context(), red)); err != nil {
		t.Fatal(err)
	}
	if got := fd.ZoneOf(red.Bridge); got != "" {
		t.Errorf("removed, but still in zone %q", got)
	}
	fd.File("trusted", blue.Bridge) // what somebody has written into its files stays
	if err := errors.Join(h.RemoveTap(t.Context(), tap2), h.RemoveNetwork(t.Context(), blue)); err != nil {
		t.Fatal(err)
	}
	if got := fd.ZoneOf(blue.Bridge); got != "trusted" {
		t.Errorf("removed, and firewalld's file lost its bridge: it is in zone %q", got)
	}
	fd.Put("trusted", blue.Bridge, false)
	// Not compared with before: a reload empties the tables of iptables, and what was
	// noted there of who made them.
	if rules := rulesOfAll(h); strings.Contains(rules, "mvm") || strings.Contains(rules, "MVM") {
		t.Errorf("removed, but:\n%s", rules)
	}

	mustEnsure(t, h, red)
	fd.Stop()
	if o, err := h.Observe(t.Context(), red); err != nil || len(o.Passages) > 0 {
		t.Errorf("without firewalld: %+v, %v", o.Passages, err)
	}
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Errorf("removed without firewalld: %v", err)
	}
}

// A firewalld that has died leaves its rules, and nobody to ask.
func TestFirewalldIsGone(t *testing.T) {
	k := New()
	h := nettest.NewHost(t, k)
	k.bus = "unix:path=" + t.TempDir() + "/none"
	h.Run("nft", "add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }; add rule inet firewalld filter_FORWARD reject")
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	o, err := h.Observe(t.Context(), red)
	if err != nil || len(o.Passages) != 1 || o.Passages[0].Ours || o.Passages[0].Open || !strings.Contains(o.Passages[0].Place, "does not answer") {
		t.Errorf("%+v, %v", o.Passages, err)
	}
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Error(err)
	}
}

// wantZone looks at what firewalld does to a network.
func wantZone(t *testing.T, h *nettest.RealHost, s network.Spec, want network.Passage) {
	t.Helper()
	o, err := h.Observe(t.Context(), s)
	if err != nil || !slices.Equal(o.Passages, []network.Passage{want}) || o.Right != (want.Open || !want.Ours) {
		t.Errorf("right is %v, passages are %+v, want %+v, %v", o.Right, o.Passages, want, err)
	}
}
