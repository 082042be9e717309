package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// networks is all that operations on networks may change, a line each.
func (w *world) networks() []string {
	w.t.Helper()
	m := w.open()
	defer func() { _ = m.Close() }()
	ctx := w.t.Context()
	st, err := m.core.open(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	nets, err1 := st.ListNetworks(ctx)
	rules, err2 := st.ListFirewallRules(ctx, "")
	leases, err3 := st.ListLeases(ctx, "")
	ops, err4 := st.ListOps(ctx, "")
	links, err5 := w.net.Interfaces(ctx)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		w.t.Fatal(err)
	}
	lines := []string{fmt.Sprintf("%d leases", len(leases))}
	for _, n := range nets {
		lines = append(lines, fmt.Sprintf("network %s %s %s present=%v default=%v", n.Name, n.Subnet, n.IPv4Gateway, n.IsPresent, n.IsDefault))
	}
	for _, r := range rules {
		lines = append(lines, fmt.Sprintf("rule %s %v", deref(r.CommandString), r.LastVerifiedAt != nil))
	}
	for _, o := range ops {
		lines = append(lines, "operation "+o.Kind+" "+o.Subject)
	}
	for _, l := range links {
		lines = append(lines, "link "+l)
		if w.net.HasTable(l) {
			lines = append(lines, "table "+l)
		}
	}
	slices.Sort(lines)
	return lines
}

func netSel(names ...string) NetworkInput { return NetworkInput{Identifiers: names} }

func (w *world) makeNetwork(m *Client, in NetworkCreateInput) *mvm.NetworkItem {
	w.t.Helper()
	n, err := m.Network.Create(w.t.Context(), in)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestNetworkCreate(t *testing.T) {
	w := newWorld(t)
	w.net.Routes = []network.Route{{Dst: netip.MustParsePrefix("172.27.1.0/24"), Interface: "eth0"}}
	m := w.open()
	lab := w.makeNetwork(m, NetworkCreateInput{Name: "lab"})
	if lab.Subnet != "172.27.0.0/24" || lab.IPv4Gateway != "172.27.0.1" || !lab.NATEnabled || !lab.BridgeActive || !lab.IsPresent || lab.IsDefault || len(lab.IPTablesRules) == 0 {
		t.Errorf("got %+v", lab)
	}
	next := w.makeNetwork(m, NetworkCreateInput{Name: "next", SetDefault: true})
	if next.Subnet != "172.27.2.0/24" || !next.IsDefault {
		t.Errorf("the next free subnet is %s, default %v", next.Subnet, next.IsDefault)
	}
	off := false
	w.net.AddLink("wlan0")
	for _, in := range []NetworkCreateInput{
		{Name: "inner", Subnet: "10.0.0.0/28", IPv4Gateway: "10.0.0.14", NATEnabled: &off},
		{Name: "office", NATGateways: []string{"wlan0"}},
		{Name: "odd", Subnet: "8.8.8.0/24", AllowPublicSubnet: true},
		{Name: "a-name-that-is-longer-than-an-interface-name"},
	} {
		n := w.makeNetwork(m, in)
		got, err := m.Network.Get(t.Context(), netSel(in.Name))
		if diff := cmp.Diff(n, got); err != nil || diff != "" {
			t.Errorf("%s: %v, and what create returned is not what is stored:\n%s", in.Name, err, diff)
		}
	}
	for _, n := range []string{"lab", "inner", "office"} {
		inspected, err := m.Network.Inspect(t.Context(), netSel(n))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range inspected.Rules {
			if r.ID == nil || r.LastVerifiedAt == nil || r.CommentTag == nil || r.NetworkID != inspected.Network.ID {
				t.Errorf("%s: a rule in the kernel is not in the store: %+v", n, r)
			}
		}
	}
}

func TestNetworkCreateRefuses(t *testing.T) {
	w := newWorld(t)
	w.net.Routes = []network.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0"}, {Dst: netip.MustParsePrefix("10.8.0.0/16")}}
	w.net.Addresses = []network.Address{{Prefix: netip.MustParsePrefix("192.168.1.7/24"), Interface: "eth0"}}
	w.net.AddLink("eth0")
	m := w.open()
	w.makeNetwork(m, NetworkCreateInput{Name: "lab", Subnet: "172.27.0.0/24"})
	w.net.AddLink("mvm-foreign")
	before := w.networks()
	off := false
	for _, tc := range []struct {
		in   NetworkCreateInput
		kind mvm.Kind
		says string
	}{
		{NetworkCreateInput{Name: ""}, mvm.ErrInvalid, "name"},
		{NetworkCreateInput{Name: "a b"}, mvm.ErrInvalid, "not a valid hostname"},
		{NetworkCreateInput{Name: "lab"}, mvm.ErrExists, "exists already"},
		{NetworkCreateInput{Name: "x", Subnet: "172.27.0.0/99"}, mvm.ErrInvalid, "prefix length"},
		{NetworkCreateInput{Name: "x", Subnet: "172.28.0.0/31"}, mvm.ErrInvalid, "too small"},
		{NetworkCreateInput{Name: "x", Subnet: "0.0.0.0/0"}, mvm.ErrInvalid, "too large"},
		{NetworkCreateInput{Name: "x", Subnet: "172.28.0.7/24"}, mvm.ErrInvalid, "host bits"},
		{NetworkCreateInput{Name: "x", Subnet: "fd00::/64"}, mvm.ErrUnsupported, "not have yet"},
		{NetworkCreateInput{Name: "x", Subnet: "169.254.169.0/24"}, mvm.ErrInvalid, "link-local"},
		{NetworkCreateInput{Name: "x", Subnet: "8.8.8.0/24"}, mvm.ErrPrivilege, PublicSubnetFlag},
		{NetworkCreateInput{Name: "x", Subnet: "172.27.0.128/25"}, mvm.ErrExists, `network \"lab\"`},
		{NetworkCreateInput{Name: "x", Subnet: "192.168.0.0/16"}, mvm.ErrExists, "192.168.1.7/24, which this host has by its interface eth0"},
		{NetworkCreateInput{Name: "x", Subnet: "10.8.3.0/24"}, mvm.ErrExists, "leads nowhere"},
		{NetworkCreateInput{Name: "x", Subnet: "172.28.0.0/24", IPv4Gateway: "172.29.0.1"}, mvm.ErrInvalid, "outside"},
		{NetworkCreateInput{Name: "x", Subnet: "172.28.0.0/24", IPv4Gateway: "172.28.0.255"}, mvm.ErrInvalid, "broadcast"},
		{NetworkCreateInput{Name: "x", IPv4Gateway: "172.28.0.1"}, mvm.ErrInvalid, "no subnet"},
		{NetworkCreateInput{Name: "x", NATGateways: []string{"eth1"}}, mvm.ErrNotFound, "eth1"},
		{NetworkCreateInput{Name: "x", NATGateways: []string{"lo"}}, mvm.ErrInvalid, "leads to no other network"},
		{NetworkCreateInput{Name: "x", NATGateways: []string{"mvm-lab"}}, mvm.ErrInvalid, "leads to no other network"},
		{NetworkCreateInput{Name: "x", NATGateways: []string{"eth0"}, NATEnabled: &off}, mvm.ErrInvalid, "no NAT"},
		{NetworkCreateInput{Name: "foreign"}, mvm.ErrExists, "belongs to something else"},
	} {
		_, err := m.Network.Create(t.Context(), tc.in)
		if !strings.Contains(fmt.Sprintf("%q", err.Error()), tc.says) && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%+v: %v, want %q", tc.in, err, tc.says)
		}
		refused(t, err, tc.kind, "")
	}
	w.root = false
	_, err := m.Network.Create(t.Context(), NetworkCreateInput{Name: "x"})
	refused(t, err, mvm.ErrPrivilege, "creating a network needs root")
	w.root = true
	if diff := cmp.Diff(before, w.networks()); diff != "" {
		t.Errorf("a refusal left something:\n%s", diff)
	}
}

// Whatever step of create fails, the world ends as it began.
func TestNetworkCreateFailsWhole(t *testing.T) {
	w := newWorld(t)
	before := w.networks()
	for _, action := range []string{"error", "cancel"} {
		for _, at := range []string{"reserve:after", "bridge:before", "bridge:after", "commit:before"} {
			_, err := w.faulty(action+":"+opNetworkCreate+":"+at).Network.Create(t.Context(), NetworkCreateInput{Name: "lab"})
			if err == nil {
				t.Errorf("%s at %s: no error", action, at)
			}
			if diff := cmp.Diff(before, w.networks()); diff != "" {
				t.Errorf("%s at %s:\n%s", action, at, diff)
			}
		}
	}
	// And so it does whichever effect on the kernel fails.
	for at := 1; ; at++ {
		n := 0
		w.net.Fail = func(string) error {
			if n++; n == at {
				return errors.New("refused")
			}
			return nil
		}
		_, err := w.open().Network.Create(t.Context(), NetworkCreateInput{Name: "lab"})
		w.net.Fail = nil
		if err == nil {
			break
		}
		if diff := cmp.Diff(before, w.networks()); diff != "" {
			t.Errorf("effect %d:\n%s", at, diff)
		}
	}
}

// A removal that was begun is finished, by the same command again or by any other.
func TestNetworkRemoveGoesForward(t *testing.T) {
	for _, at := range []string{"reserve:after", "revert:bridge:before", "revert:bridge:after", "finish:before"} {
		w := newWorld(t)
		before := w.networks()
		w.makeNetwork(w.open(), NetworkCreateInput{Name: "lab"})
		if _, err := w.faulty("error:"+opNetworkRemove+":"+at).Network.Remove(t.Context(), netSel("lab"), false); err == nil {
			t.Errorf("%s: no error", at)
		}
		if diff := cmp.Diff(before, w.networks()); diff != "" { // opens the world, which finishes
			t.Errorf("%s:\n%s", at, diff)
		}
	}
}

func TestNetworkRemove(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	w.makeNetwork(m, NetworkCreateInput{Name: "lab"})
	w.makeNetwork(m, NetworkCreateInput{Name: "spare"})
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NetworkName: "lab"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Network.SetDefault(ctx, netSel("spare")); err != nil {
		t.Fatal(err)
	}
	remove := func(force bool, names ...string) error {
		_, err := m.Network.Remove(ctx, netSel(names...), force)
		return err
	}
	refused(t, remove(true, "lab"), mvm.ErrConflict, `VM "web" is running on it`)
	refused(t, remove(false, "spare"), mvm.ErrConflict, "default network")
	refused(t, remove(false, "nosuch"), mvm.ErrNotFound, "nosuch")
	refused(t, remove(false), mvm.ErrInvalid, "no network")
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	refused(t, remove(false, "lab"), mvm.ErrConflict, "web")
	w.root = false
	refused(t, remove(true, "lab"), mvm.ErrPrivilege, "removing a network needs root")
	w.root = true
	if err := remove(true, "lab", "spare"); err != nil {
		t.Fatal(err)
	}
	if got := w.networks(); !slices.Equal(got, []string{"0 leases", "link lo"}) {
		t.Errorf("left are %q", got)
	}
	_, err := m.VM.Start(ctx, sel("web"))
	refused(t, err, mvm.ErrBroken, "its network")
	if _, err := m.VM.Remove(ctx, sel("web")); err != nil {
		t.Error(err)
	}
	w.makeNetwork(m, NetworkCreateInput{Name: "lab"}) // the name is free again
}

func TestNetworkDefault(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	w.makeNetwork(m, NetworkCreateInput{Name: "lab"})
	// A network that nobody chose is not the default one.
	p, err := w.plan(m, VMCreateInput{})
	if err != nil || p.network.Name != "default" {
		t.Fatalf("%v: a VM goes on %+v", err, p)
	}
	for range 2 {
		if n, err := m.Network.SetDefault(t.Context(), netSel("lab")); err != nil || !n.IsDefault {
			t.Errorf("%+v, %v", n, err)
		}
	}
	if p, err := w.plan(m, VMCreateInput{}); err != nil || p.network.Name != "lab" {
		t.Errorf("%v: a VM goes on %+v", err, p)
	}
	if n, err := m.Network.CreateDefaultNetwork(t.Context()); err != nil || n.Name != "lab" {
		t.Errorf("the default network is %+v, %v", n, err)
	}
}

func TestNetworkSync(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	w.makeNetwork(m, NetworkCreateInput{Name: "lab"})
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NetworkName: "lab"}); err != nil {
		t.Fatal(err)
	}
	rules := len(network.Rules(networkSpec(mustGet(t, m, "lab"))))
	before := w.networks()
	for _, tc := range []struct {
		name                          string
		damage                        func()
		added, removed, kept, changes int
	}{
		{"nothing", func() {}, 0, 0, rules, 0},
		{"rules flushed", func() { w.net.FlushTable("mvm-lab") }, rules, 0, 0, 1},
		{"bridge removed", func() { w.net.DelLink("mvm-lab") }, 0, 0, rules, 4}, // and the tap is put on it again
		{"bridge down", func() { w.net.SetDown("mvm-lab") }, 0, 0, rules, 1},
		{"another program began anew", func() {
			w.net.Passages = []network.Passage{{Program: "Docker", Place: "iptables chain DOCKER-USER", Ours: true, Added: 2, Kept: 1}}
		}, 2, 0, rules + 1, 1},
		{"and lets everything through", func() {}, 0, 0, rules + 3, 0},
		{"another program has what is not wanted", func() { w.net.Passages[0].Open, w.net.Passages[0].Removed = false, 4 }, 0, 4, rules + 3, 1},
	} {
		tc.damage()
		done, err := m.Network.Sync(ctx, netSel("lab"))
		if err != nil {
			t.Fatal(err)
		}
		if got := done["lab"]; got.Added != tc.added || got.Removed != tc.removed || got.Kept != tc.kept || len(got.Changes) != tc.changes {
			t.Errorf("%s: %+v", tc.name, got)
		}
		if diff := cmp.Diff(before, w.networks()); diff != "" {
			t.Errorf("%s: not as before:\n%s", tc.name, diff)
		}
		taps, err := w.net.Taps(ctx)
		if err != nil || len(taps) != 1 || taps[0].Bridge != "mvm-lab" || !taps[0].Guarded {
			t.Errorf("%s: taps are %+v, %v", tc.name, taps, err)
		}
	}
	w.net.Passages = nil
	w.makeNetwork(m, NetworkCreateInput{Name: "other"})
	if done, err := m.Network.Sync(ctx, NetworkInput{}); err != nil || len(done) != 2 {
		t.Errorf("all: %+v, %v", done, err)
	}
	_, err := m.Network.Sync(ctx, netSel("nosuch"))
	refused(t, err, mvm.ErrNotFound, "nosuch")
	w.net.DelLink("mvm-other")
	w.net.AddLink("mvm-other")
	done, err := m.Network.Sync(ctx, NetworkInput{})
	refused(t, err, mvm.ErrExists, "belongs to something else")
	if done["lab"] == nil || done["lab"].Kept != rules {
		t.Errorf("one that fails keeps the rest from being mended: %+v", done)
	}
	w.root = false
	_, err = m.Network.Sync(ctx, NetworkInput{})
	refused(t, err, mvm.ErrPrivilege, "mending networks needs root")
}

func mustGet(t *testing.T, m *Client, name string) *mvm.NetworkItem {
	t.Helper()
	n, err := m.Network.Get(context.WithoutCancel(t.Context()), netSel(name))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNetworkPrune(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	for _, name := range []string{"runs", "stopped", "unused", "chosen"} {
		w.makeNetwork(m, NetworkCreateInput{Name: name, SetDefault: name == "chosen"})
	}
	for _, name := range []string{"runs", "stopped"} {
		if _, err := m.VM.Create(ctx, VMCreateInput{Name: name, NetworkName: name}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"stopped"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		in   PruneInput
		want []string
	}{
		{PruneInput{DryRun: true}, []string{"unused"}},
		{PruneInput{DryRun: true, All: true}, []string{"chosen", "stopped", "unused"}},
		{PruneInput{}, []string{"unused"}},
		{PruneInput{}, []string{}},
		{PruneInput{All: true}, []string{"chosen", "stopped"}},
	} {
		res, err := m.Cache.PruneNetworks(ctx, step.in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, res.Removed); diff != "" {
			t.Errorf("%+v:\n%s", step.in, diff)
		}
	}
}

// A VM cannot be put on a network that is just being removed.
func TestNoVMOnANetworkThatGoes(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	n := w.makeNetwork(m, NetworkCreateInput{Name: "lab"})
	n.IsPresent = false
	if err := m.core.st.UpdateNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	_, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", NetworkName: "lab"})
	refused(t, err, mvm.ErrConflict, "being made or removed")
}

// After a reboot nothing of a network is there; the boot's command brings all of them
// up, whether a VM is to start or not.
func TestNetworksAreThereAfterBoot(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.makeNetwork(m, NetworkCreateInput{Name: "lab"})
	w.makeNetwork(m, NetworkCreateInput{Name: "other"})
	before := w.networks()
	w.net = &nettest.Fake{Addresses: w.net.Addresses}
	if _, err := w.open().VM.Autostart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, w.networks()); diff != "" {
		t.Errorf("before and after:\n%s", diff)
	}
}
