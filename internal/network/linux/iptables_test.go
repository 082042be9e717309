package linux

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// What iptables prints is the proof that others read our rules as we mean them.
func TestRulesReadBackByIPTables(t *testing.T) {
	h := newHost(t, network.IPTables)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	red.DNS = true
	mustEnsure(t, h, red)
	want := `-P FORWARD ACCEPT
-N MVM-FORWARD
-N MVM-FWD-mvm-red
-N MVM-IN-mvm-red
-N MVM-NOCLOUDNET-INPUT
-A INPUT -m comment --comment "mvm:jump:table" -j MVM-NOCLOUDNET-INPUT
-A FORWARD -m comment --comment "mvm:jump:table" -j MVM-FORWARD
-A MVM-FORWARD -m comment --comment "mvm:id-of-red:group" -j MVM-FWD-mvm-red
-A MVM-FWD-mvm-red -d 172.27.0.0/24 ! -i mvm-red -o mvm-red -m conntrack --ctstate DNAT -m comment --comment "mvm:id-of-red:published_in" -j RETURN
-A MVM-FWD-mvm-red -s 172.27.0.0/24 -i mvm-red ! -o mvm-red -m conntrack --ctstate DNAT --ctdir REPLY -m comment --comment "mvm:id-of-red:published_out" -j RETURN
-A MVM-FWD-mvm-red -d 172.27.0.0/24 ! -i mvm-red -o mvm-red -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "mvm:id-of-red:forward_in" -j RETURN
-A MVM-FWD-mvm-red -d 169.254.0.0/16 -i mvm-red ! -o mvm-red -m comment --comment "mvm:id-of-red:forward_out" -j DROP
-A MVM-FWD-mvm-red -s 172.27.0.0/24 -i mvm-red ! -o mvm-red -m comment --comment "mvm:id-of-red:forward_out" -j RETURN
-A MVM-FWD-mvm-red ! -i mvm-red -o mvm-red -m comment --comment "mvm:id-of-red:forward_in" -j DROP
-A MVM-FWD-mvm-red -i mvm-red ! -o mvm-red -m comment --comment "mvm:id-of-red:forward_out" -j DROP
-A MVM-IN-mvm-red -i mvm-red -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "mvm:id-of-red:input_replies" -j RETURN
-A MVM-IN-mvm-red -d 172.27.0.1/32 -i mvm-red -p icmp -m icmp --icmp-type 8 -m comment --comment "mvm:id-of-red:input_ping" -j RETURN
-A MVM-IN-mvm-red -d 172.27.0.1/32 -i mvm-red -p udp -m udp --dport 53 -m comment --comment "mvm:id-of-red:input_dns" -j RETURN
-A MVM-IN-mvm-red -d 172.27.0.1/32 -i mvm-red -p tcp -m tcp --dport 53 -m comment --comment "mvm:id-of-red:input_dns" -j RETURN
-A MVM-IN-mvm-red -d 172.27.0.1/32 -i mvm-red -m mark --mark 0x6d766d01 -m comment --comment "mvm:id-of-red:nocloudnet_input" -j RETURN
-A MVM-IN-mvm-red -i mvm-red -m comment --comment "mvm:id-of-red:input" -j DROP
-A MVM-NOCLOUDNET-INPUT -m comment --comment "mvm:id-of-red:group" -j MVM-IN-mvm-red
`
	got := strings.ReplaceAll(h.Run("iptables", "-S"), "-P INPUT ACCEPT\n", "")
	if diff := cmp.Diff(want, strings.ReplaceAll(got, "-P OUTPUT ACCEPT\n", "")); diff != "" {
		t.Errorf("filter (-want +got):\n%s", diff)
	}
	wantNAT := `-A POSTROUTING -m comment --comment "mvm:jump:table" -j MVM-POSTROUTING
-A MVM-POST-mvm-red -s 172.27.0.0/24 ! -o mvm-red -m comment --comment "mvm:id-of-red:masquerade" -j MASQUERADE
-A MVM-POST-mvm-red -s 172.27.0.0/24 -o mvm-red -m conntrack --ctstate DNAT -m comment --comment "mvm:id-of-red:hairpin" -j MASQUERADE
-A MVM-POST-mvm-red -s 127.0.0.0/8 -o mvm-red -m comment --comment "mvm:id-of-red:hairpin_local" -j MASQUERADE
-A MVM-POSTROUTING -m comment --comment "mvm:id-of-red:group" -j MVM-POST-mvm-red
`
	if nat := h.Run("iptables", "-t", "nat", "-S"); !strings.HasSuffix(nat, wantNAT) {
		t.Errorf("nat is\n%s\nand should end in\n%s", nat, wantNAT)
	}
	o, err := h.Observe(t.Context(), red)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range o.Rules { // what people are shown is what iptables shows
		if _, text, _ := strings.Cut(*r.CommandString, " "); !strings.Contains(strings.ReplaceAll(want+wantNAT, `"`, ""), text) {
			t.Errorf("the rule reads %q, which iptables does not print", text)
		}
	}
}

// Rules that somebody changed by hand show as what they are, and are put right.
func TestChangedIPTablesRulesAreSeen(t *testing.T) {
	h := newHost(t, network.IPTables)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	tag := []string{"-m", "comment", "--comment", "mvm:id-of-red:forward_out"}
	own := "MVM-FWD-mvm-red"
	for name, args := range map[string][]string{
		"accept before all":  append([]string{"-I", own, "-j", "ACCEPT"}, tag...),
		"a port":             append([]string{"-I", own, "-p", "tcp", "--dport", "22", "-j", "DROP"}, tag...),
		"ports":              append([]string{"-I", own, "-p", "tcp", "--dport", "22:80", "-j", "DROP"}, tag...),
		"not an address":     append([]string{"-I", own, "!", "-s", "10.0.0.0/8", "-j", "DROP"}, tag...),
		"untagged":           {"-A", own, "-i", "x", "-j", "DROP"},
		"an interface group": append([]string{"-I", own, "-i", "mvm+", "-j", "DROP"}, tag...),
		"a rule twice":       append([]string{"-A", own, "-i", "mvm-red", "!", "-o", "mvm-red", "-j", "DROP"}, tag...),
		"only new":           append([]string{"-I", own, "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"}, tag...),
		"a mark alone":       append([]string{"-I", own, "-m", "mark", "--mark", "7", "-j", "DROP"}, tag...),
		"a goto":             append([]string{"-I", own, "-g", "MVM-IN-mvm-red"}, tag...),
		"a reject":           append([]string{"-I", own, "-j", "REJECT"}, tag...),
	} {
		mustEnsure(t, h, red)
		h.Run("iptables", args...)
		o, err := h.Observe(t.Context(), red)
		if err != nil {
			t.Fatal(err)
		}
		if d := network.Diff(network.Rules(red), o.Rules); o.Right || len(d.Removed) != 1 || len(d.Added) != 0 {
			t.Errorf("%s: right is %v, %d removed and %d added; want it to stand out alone", name, o.Right, len(d.Removed), len(d.Added))
		}
		if changes, err := h.EnsureNetwork(t.Context(), red); err != nil || len(changes) != 1 {
			t.Errorf("%s: mending gave %v, %v", name, changes, err)
		}
	}
	for name, args := range map[string][]string{
		"the way to it is gone":  {"-D", "MVM-FORWARD", "1"},
		"the way to all is gone": {"-D", "FORWARD", "1"},
		"another comes first":    {"-I", "FORWARD", "-i", "docker0", "-j", "ACCEPT"},
		"the way is there twice": {"-A", "MVM-FORWARD", "-j", own},
		"somebody emptied it":    {"-F", own},
		"somebody emptied all":   {"-F"},
	} {
		mustEnsure(t, h, red)
		h.Run("iptables", args...)
		o, err := h.Observe(t.Context(), red)
		if err != nil || o.Right {
			t.Errorf("%s: right is %v, %v", name, o.Right, err)
		}
		if changes, err := h.EnsureNetwork(t.Context(), red); err != nil || len(changes) != 1 {
			t.Errorf("%s: mending gave %v, %v", name, changes, err)
		}
		if o, err := h.Observe(t.Context(), red); err != nil || !o.Right {
			t.Errorf("%s: after mending, right is %v, %v", name, o.Right, err)
		}
	}
}

// foreignRules are of other programs, and match no guest.
const foreignRules = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:THEIRS - [0:0]
-A FORWARD -i docker0 -m comment --comment "theirs" -j ACCEPT
-A INPUT -j THEIRS
-A THEIRS -s 10.1.2.3/32 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
`

// counters are what iptables-save counts of a chain's packets.
var counters = regexp.MustCompile(` \[\d+:\d+\]$`)

// rulesOfAll are all rules of a host.
func rulesOfAll(h *nettest.RealHost) string {
	return outputs(h, [][]string{{"iptables-save"}, {"nft", "-s", "list", "ruleset"}})
}

// state is all of a host that networks and taps may change.
func state(h *nettest.RealHost) string {
	return rulesOfAll(h) + outputs(h, [][]string{
		{"ip", "address"}, {"ip", "route", "show", "table", "all"}, {"ip", "neighbour"}, {"sysctl", "net.ipv4", "net.ipv6", "net.bridge"},
	})
}

// outputs are what commands print, without what changes by itself.
func outputs(h *nettest.RealHost, cmds [][]string) string {
	var b strings.Builder
	for _, cmd := range cmds {
		for _, line := range strings.Split(h.RunAnyway(cmd[0], cmd[1:]...), "\n") {
			if !strings.HasPrefix(line, "#") { // dates
				b.WriteString(counters.ReplaceAllString(line, "") + "\n")
			}
		}
	}
	return b.String()
}

// A host is as it was when the last network and VM have gone, whatever others have
// and whichever backend the rules were in.
func TestHostIsAsItWas(t *testing.T) {
	onBackends(t, func(t *testing.T, h *nettest.RealHost) {
		red, blue := nettest.SpecOf("red", "172.27.0.0/24"), nettest.SpecOf("blue", "172.27.1.0/24")
		red.Published, red.Loopback = true, true
		one, two := nettest.TapOf("vm1", red, "172.27.0.2"), nettest.TapOf("vm2", red, "172.27.0.3")
		one.Isolated, two.Publish = true, []network.Publish{{Protocol: "tcp", HostPort: 80, GuestPort: 80}}
		nc := nettest.NoCloudOf("vm1", red, "172.27.0.2", 8001)
		h.Run("sysctl", "-qw", "net.ipv4.ip_forward=1") // which stays on by design
		for _, prepare := range []struct {
			name string
			do   func()
		}{
			{"nobody has rules", func() {}},
			{"iptables has been looked at", func() { h.Run("iptables", "-L") }},
			{"one chain alone", func() {
				h.Run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0 ; policy accept ; }")
			}},
			{"Docker is there", func() { h.Restore(nettest.DockerRules) }},
			{"ufw is there", func() { h.Restore(nettest.UFWRules) }},
			{"others have rules", func() {
				h.Restore(foreignRules)
				h.Run("nft", `add table inet mvm-redder; add chain inet mvm-redder c; add table netdev guard; add table bridge mvm-red; add chain bridge mvm-red c`)
			}},
		} {
			prepare.do()
			before := state(h)
			mustEnsure(t, h, red)
			mustEnsure(t, h, blue)
			if err := errors.Join(h.AddTap(t.Context(), one), h.AddTap(t.Context(), two), h.AllowNoCloud(t.Context(), nc)); err != nil {
				t.Fatal(err)
			}
			if state(h) == before {
				t.Error("nothing shows in what is compared")
			}
			if err := errors.Join(h.RemoveNoCloud(t.Context(), nc), h.RemoveTap(t.Context(), one), h.RemoveNetwork(t.Context(), red), h.RemoveTap(t.Context(), two), h.RemoveNetwork(t.Context(), blue)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, state(h)); diff != "" {
				t.Errorf("%s: before and after:\n%s", prepare.name, diff)
			}
		}
	})
}

// Rules move with the setting, with nothing left behind, and guests are never
// without.
func TestBackendIsSwitched(t *testing.T) {
	h := newHost(t, network.NFTables)
	h.Run("iptables-save", "--version")
	before := state(h)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	red.NAT, red.Published = false, true
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	tap.Publish = []network.Publish{{Protocol: "tcp", HostPort: 80, GuestPort: 80}}
	nc := nettest.NoCloudOf("vm1", red, "172.27.0.2", 8001)
	var ruleset string
	for _, b := range []network.Backend{network.NFTables, network.IPTables, network.NFTables, network.IPTables} {
		red.Backend, tap.Backend, nc.Backend = b, b, b
		if o, err := h.Observe(t.Context(), red); err != nil || o.Right {
			t.Errorf("before the move to %s: right is %v, %v", b, o.Right, err)
		}
		mustEnsure(t, h, red)
		if err := errors.Join(h.AddTap(t.Context(), tap), h.AllowNoCloud(t.Context(), nc)); err != nil {
			t.Fatal(err)
		}
		o, err := h.Observe(t.Context(), red)
		ot, err2 := h.ObserveTap(t.Context(), tap)
		if err := errors.Join(err, err2); err != nil || !o.Right || !ot.Right {
			t.Errorf("with %s: right are %v and %v, %v", b, o.Right, ot.Right, err)
		}
		now := h.Run("nft", "list", "ruleset")
		if b == network.NFTables && ruleset != "" && now != ruleset {
			t.Errorf("moved back and forth:\n%s", cmp.Diff(ruleset, now))
		}
		if ruleset == "" {
			ruleset = now
		}
		if inTables := strings.Contains(now, "table ip mvm-red"); inTables != (b == network.NFTables) {
			t.Errorf("with %s, the rules are\n%s", b, now)
		}
	}
	if err := errors.Join(h.RemoveNoCloud(t.Context(), nc), h.RemoveTap(t.Context(), tap), h.RemoveNetwork(t.Context(), red)); err != nil {
		t.Fatal(err)
	}
	h.Run("sysctl", "-qw", "net.ipv4.ip_forward=0")
	if diff := cmp.Diff(before, state(h)); diff != "" {
		t.Errorf("before and after:\n%s", diff)
	}
}

// Hosts whose iptables does not use nftables.
func TestLegacyIPTables(t *testing.T) {
	legacyFirst(t)
	h := newHost(t, network.IPTables)
	if len(legacyTablesIn(h)) > 0 {
		t.Fatal("a new namespace has tables")
	}
	out := nettest.Outside(t, h.Namespace)
	server := out.ServePeer(nettest.OutsideAddr.String() + ":80")
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	guest := addVM(t, h, red, "vm1", "172.27.0.2")
	wantPeer(t, "guest to outside", guest, server, nettest.HostAddr.String())
	if !slices.Contains(legacyTablesIn(h), "filter") {
		t.Skip("this kernel has no tables for iptables-legacy")
	}
	if h.HasNFTable("filter") {
		t.Error("iptables-legacy has made a table of nftables")
	}
	red.Backend = network.NFTables
	mustEnsure(t, h, red)
	wantPeer(t, "guest to outside, moved to nftables", guest, server, nettest.HostAddr.String())
	if got := h.Run("iptables-save"); strings.Contains(got, "MVM-") {
		t.Errorf("after moving the rules away, there are\n%s", got)
	}
	red.Backend = network.IPTables
	mustEnsure(t, h, red)
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Fatal(err)
	}
	if got := h.Run("iptables-save"); strings.Contains(got, "MVM-") || h.HasNFTable(red.Bridge) {
		t.Errorf("after removal there are\n%s", got)
	}
}

func legacyTablesIn(h *nettest.RealHost) (tables []string) {
	h.Do(func() { tables = legacyTables() })
	return tables
}
