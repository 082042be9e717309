package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// A process that is killed right after the call that makes the bridge leaves
// one without an alias.
func TestHalfMadeBridgeIsTakenUp(t *testing.T) {
	h := nettest.NewHost(t, New())
	red := nettest.SpecOf("red", "172.27.0.0/24")
	halfMade := func() {
		h.Run("ip", "link", "add", red.Bridge, "address", network.BridgeMAC(red.NetworkID).String(), "type", "bridge")
	}
	halfMade()
	mustEnsure(t, h, red)
	if got := h.Run("ip", "-d", "link", "show", red.Bridge); !strings.Contains(got, "alias mvm:"+red.NetworkID) || !strings.Contains(got, "stp_state 0") {
		t.Errorf("the bridge is not marked, or runs the spanning tree protocol:\n%s", got)
	}
	h.DelLink(red.Bridge)
	halfMade()
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Fatal(err)
	}
	if names, err := h.Interfaces(t.Context()); err != nil || slices.Contains(names, red.Bridge) {
		t.Errorf("a half-made bridge was not removed: %v, %v", names, err)
	}
}

// A tap that is like ours but not marked is somebody else's: ours never exist
// unmarked.
func TestUnmarkedTapIsForeign(t *testing.T) {
	h := nettest.NewHost(t, New())
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	h.Run("ip", "tuntap", "add", tap.Name, "mode", "tap")
	if err := h.AddTap(t.Context(), tap); !errors.Is(err, mvm.ErrExists) {
		t.Errorf("an unmarked tap gave %v", err)
	}
	if got := h.Run("ip", "-d", "link", "show", tap.Name); strings.Contains(got, "master") || strings.Contains(got, "alias") {
		t.Errorf("a refused tap was changed:\n%s", got)
	}
}

// What nft prints is the proof that others read our rules as we mean them.
func TestRulesReadBackByNft(t *testing.T) {
	h := nettest.NewHost(t, New())
	red := nettest.SpecOf("red", "172.27.0.0/24")
	red.DNS = true
	mustEnsure(t, h, red)
	want := `table ip mvm-red {
	chain MVM-FORWARD {
		type filter hook forward priority filter; policy accept;
		iifname != "mvm-red" oifname "mvm-red" ip daddr 172.27.0.0/24 ct status dnat accept comment "mvm:id-of-red:published_in"
		iifname "mvm-red" oifname != "mvm-red" ip saddr 172.27.0.0/24 ct status dnat ct direction reply accept comment "mvm:id-of-red:published_out"
		iifname != "mvm-red" oifname "mvm-red" ip daddr 172.27.0.0/24 ct state established,related accept comment "mvm:id-of-red:forward_in"
		iifname "mvm-red" oifname != "mvm-red" ip daddr 169.254.0.0/16 drop comment "mvm:id-of-red:forward_out"
		iifname "mvm-red" oifname != "mvm-red" ip saddr 172.27.0.0/24 accept comment "mvm:id-of-red:forward_out"
		iifname != "mvm-red" oifname "mvm-red" drop comment "mvm:id-of-red:forward_in"
		iifname "mvm-red" oifname != "mvm-red" drop comment "mvm:id-of-red:forward_out"
	}

	chain MVM-NOCLOUDNET-INPUT {
		type filter hook input priority filter; policy accept;
		iifname "mvm-red" ct state established,related accept comment "mvm:id-of-red:input_replies"
		iifname "mvm-red" ip daddr 172.27.0.1 icmp type echo-request accept comment "mvm:id-of-red:input_ping"
		iifname "mvm-red" ip daddr 172.27.0.1 udp dport 53 accept comment "mvm:id-of-red:input_dns"
		iifname "mvm-red" ip daddr 172.27.0.1 tcp dport 53 accept comment "mvm:id-of-red:input_dns"
		iifname "mvm-red" ip daddr 172.27.0.1 meta mark 0x6d766d01 accept comment "mvm:id-of-red:nocloudnet_input"
		iifname "mvm-red" drop comment "mvm:id-of-red:input"
	}

	chain MVM-POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		oifname != "mvm-red" ip saddr 172.27.0.0/24 masquerade comment "mvm:id-of-red:masquerade"
		oifname "mvm-red" ip saddr 172.27.0.0/24 ct status dnat masquerade comment "mvm:id-of-red:hairpin"
		oifname "mvm-red" ip saddr 127.0.0.0/8 masquerade comment "mvm:id-of-red:hairpin_local"
	}
}
`
	if diff := cmp.Diff(want, h.Run("nft", "list", "table", "ip", red.Bridge)); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	var text []string
	for _, r := range network.Rules(red) {
		text = append(text, *r.CommandString)
	}
	for _, line := range text {
		if _, rest, _ := strings.Cut(line, " "); !strings.Contains(want, rest) {
			t.Errorf("Text gives %q, which nft does not print", rest)
		}
	}
}

// Rules that somebody changed by hand show as what they are, and are put right.
func TestChangedRulesAreSeen(t *testing.T) {
	h := nettest.NewHost(t, New())
	red := nettest.SpecOf("red", "172.27.0.0/24")
	tag := `comment "mvm:id-of-red:forward_out"`
	for name, line := range map[string]string{
		"accept before all":  `insert rule ip mvm-red MVM-FORWARD accept ` + tag,
		"a port":             `insert rule ip mvm-red MVM-FORWARD tcp dport 22 drop ` + tag,
		"untagged":           `add rule ip mvm-red MVM-FORWARD iifname "x" drop`,
		"a jump":             `add chain ip mvm-red c; insert rule ip mvm-red MVM-FORWARD jump c ` + tag,
		"an interface group": `insert rule ip mvm-red MVM-FORWARD iifname "mvm*" drop ` + tag,
		"a rule twice":       `add rule ip mvm-red MVM-FORWARD iifname "mvm-red" oifname != "mvm-red" drop ` + tag,
		"a masquerade port":  `insert rule ip mvm-red MVM-POSTROUTING meta l4proto tcp masquerade to :1024-2000 ` + tag,
	} {
		mustEnsure(t, h, red)
		h.Run("nft", line)
		o, err := h.Observe(t.Context(), red)
		if err != nil {
			t.Fatal(err)
		}
		if d := network.Diff(network.Rules(red), o.Rules); len(d.Removed) != 1 || len(d.Added) != 0 {
			t.Errorf("%s: %d removed and %d added, want it to stand out alone", name, len(d.Removed), len(d.Added))
		}
		if changes, err := h.EnsureNetwork(t.Context(), red); err != nil || len(changes) != 1 {
			t.Errorf("%s: mending gave %v, %v", name, changes, err)
		}
	}
	h.Run("nft", "delete", "chain", "ip", "mvm-red", network.ChainInput)
	mustEnsure(t, h, red)
	h.Run("nft", "list", "chain", "ip", "mvm-red", network.ChainInput)
}

// Threads of one namespace stand for mvm processes that run at once.
func TestConcurrentProcesses(t *testing.T) { onBackends(t, concurrentProcesses) }

func concurrentProcesses(t *testing.T, h *nettest.RealHost) {
	const processes = 6
	shared := nettest.SpecOf("shared", "172.27.100.0/24")
	var wg sync.WaitGroup
	errs := make([]error, processes)
	own := func(i int) network.Spec {
		return nettest.SpecOf(fmt.Sprintf("own-%d", i), fmt.Sprintf("172.27.%d.0/24", i))
	}
	for i := range processes {
		k := h.Thread().Within(h.Bare)
		wg.Go(func() {
			_, err := k.EnsureNetwork(context.Background(), shared)
			_, err2 := k.EnsureNetwork(context.Background(), own(i))
			errs[i] = errors.Join(err, err2,
				k.AddTap(context.Background(), nettest.TapOf("the same VM", shared, "172.27.100.2")),
				k.AddTap(context.Background(), nettest.TapOf(fmt.Sprint("vm", i), own(i), fmt.Sprintf("172.27.%d.2", i))))
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i := range processes + 1 {
		s := shared
		if i < processes {
			s = own(i)
		}
		o, err := h.Observe(t.Context(), s)
		if err != nil || !o.Active() || !network.InPlace(network.Rules(s), o.Rules) {
			t.Errorf("network %s: %+v, %v", s.Name, o, err)
		}
	}
	if taps, err := h.Taps(t.Context()); err != nil || len(taps) != processes+1 {
		t.Errorf("taps: %v, %v", taps, err)
	}
}

func TestWithoutPrivilege(t *testing.T) { onBackends(t, withoutPrivilege) }

func withoutPrivilege(t *testing.T, h *nettest.RealHost) {
	red, blue := nettest.SpecOf("red", "172.27.0.0/24"), nettest.SpecOf("blue", "172.27.1.0/24")
	mustEnsure(t, h, red)
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	th := h.Thread()
	th.Do(func() { becomeUser(65534) })
	k := th.Within(h.Bare)
	_, err := k.EnsureNetwork(t.Context(), blue)
	for what, err := range map[string]error{
		"EnsureNetwork": err, "RemoveNetwork": k.RemoveNetwork(t.Context(), red),
		"AddTap": k.AddTap(t.Context(), nettest.TapOf("vm2", red, "172.27.0.3")), "RemoveTap": k.RemoveTap(t.Context(), tap),
	} {
		if !errors.Is(err, mvm.ErrPrivilege) || mvm.HintOf(err) != "run with sudo" {
			t.Errorf("%s: %v, hint %q", what, err, mvm.HintOf(err))
		}
	}
	if o, err := k.Observe(t.Context(), red); err != nil || !o.Active() || !o.RulesUnknown {
		t.Errorf("Observe: %+v, %v", o, err)
	}
	if taps, err := k.Taps(t.Context()); err != nil || len(taps) != 1 || taps[0].Bridge != red.Bridge {
		t.Errorf("Taps: %+v, %v", taps, err)
	}
}

func TestHostRoutesAndUplinks(t *testing.T) {
	h := nettest.NewHost(t, New())
	nettest.Outside(t, h.Namespace)
	h.Run("ip", "route", "add", "10.9.0.0/16", "via", nettest.OutsideAddr.String())
	h.Run("ip", "route", "add", "blackhole", "10.8.0.0/16")
	h.Run("ip", "route", "add", "10.7.0.0/16", "nexthop", "via", nettest.OutsideAddr.String(), "nexthop", "via", "198.51.100.3")
	routes, err := h.HostRoutes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := network.Uplinks(routes); !slices.Equal(got, []string{nettest.Uplink}) {
		t.Errorf("uplinks are %v", got)
	}
	dst := network.Destinations(routes)
	for _, want := range []string{"10.9.0.0/16", "10.8.0.0/16", "10.7.0.0/16", "198.51.100.0/24"} {
		if !slices.Contains(dst, netip.MustParsePrefix(want)) {
			t.Errorf("route %s is missing in %v", want, dst)
		}
	}
}

func BenchmarkNetworkWithNAT(b *testing.B) {
	h := nettest.NewHost(b, New())
	k, red := New(), nettest.SpecOf("red", "172.27.0.0/24")
	ctx := context.Background()
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	for name, op := range map[string]struct{ setup, timed, cleanup func() error }{
		"create": {nil, func() error { _, err := k.EnsureNetwork(ctx, red); return err }, func() error { return k.RemoveNetwork(ctx, red) }},
		"remove": {func() error { _, err := k.EnsureNetwork(ctx, red); return err }, func() error { return k.RemoveNetwork(ctx, red) }, nil},
		"tap":    {func() error { _, err := k.EnsureNetwork(ctx, red); return err }, func() error { return k.AddTap(ctx, tap) }, func() error { return errors.Join(k.RemoveTap(ctx, tap), k.RemoveNetwork(ctx, red)) }},
	} {
		b.Run(name, func(b *testing.B) {
			var err error
			h.Do(func() {
				for b.Loop() {
					b.StopTimer()
					if op.setup != nil {
						err = errors.Join(err, op.setup())
					}
					b.StartTimer()
					err = errors.Join(err, op.timed())
					b.StopTimer()
					if op.cleanup != nil {
						err = errors.Join(err, op.cleanup())
					}
					b.StartTimer()
				}
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
