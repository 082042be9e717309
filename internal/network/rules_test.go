package network

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

var red = Spec{
	NetworkID: "id", Name: "red", Bridge: "mvm-red", NAT: true,
	Subnet: netip.MustParsePrefix("172.27.0.0/24"), Gateway: netip.MustParseAddr("172.27.0.1"),
}

func texts(rules []mvm.FirewallRule) []string {
	var out []string
	for _, r := range rules {
		out = append(out, strings.TrimSuffix(strings.Split(Text(r), " comment ")[0], " "))
	}
	return out
}

func TestRules(t *testing.T) {
	uplinks, inner, served := red, red, red
	uplinks.NATGateways = []string{"eth0", "wlan0"}
	inner.NAT, inner.NATGateways = false, []string{"eth0"}
	served.DNS = true
	published := []string{
		`MVM-FORWARD iifname != "mvm-red" oifname "mvm-red" ip daddr 172.27.0.0/24 ct status dnat accept`,
		`MVM-FORWARD iifname "mvm-red" oifname != "mvm-red" ip saddr 172.27.0.0/24 ct status dnat ct direction reply accept`,
	}
	metadata := []string{`MVM-FORWARD iifname "mvm-red" oifname != "mvm-red" ip daddr 169.254.0.0/16 drop`}
	drops := []string{
		`MVM-FORWARD iifname != "mvm-red" oifname "mvm-red" drop`,
		`MVM-FORWARD iifname "mvm-red" oifname != "mvm-red" drop`,
	}
	replies := []string{
		`MVM-NOCLOUDNET-INPUT iifname "mvm-red" ct state established,related accept`,
		`MVM-NOCLOUDNET-INPUT iifname "mvm-red" ip daddr 172.27.0.1 icmp type echo-request accept`,
	}
	noInput := []string{
		`MVM-NOCLOUDNET-INPUT iifname "mvm-red" ip daddr 172.27.0.1 meta mark 0x6d766d01 accept`,
		`MVM-NOCLOUDNET-INPUT iifname "mvm-red" drop`,
	}
	hairpin := []string{
		`MVM-POSTROUTING oifname "mvm-red" ip saddr 172.27.0.0/24 ct status dnat masquerade`,
		`MVM-POSTROUTING oifname "mvm-red" ip saddr 127.0.0.0/8 masquerade`,
	}
	nat := [][]string{
		{`MVM-FORWARD iifname != "mvm-red" oifname "mvm-red" ip daddr 172.27.0.0/24 ct state established,related accept`},
		{`MVM-FORWARD iifname "mvm-red" oifname != "mvm-red" ip saddr 172.27.0.0/24 accept`},
		{`MVM-POSTROUTING oifname != "mvm-red" ip saddr 172.27.0.0/24 masquerade`},
	}
	for _, c := range []struct {
		name string
		spec Spec
		want []string
	}{
		{"NAT", red, slices.Concat(published, nat[0], metadata, nat[1], drops, replies, noInput, nat[2], hairpin)},
		{"uplinks", uplinks, slices.Concat(published, []string{
			`MVM-FORWARD iifname "eth0" oifname "mvm-red" ip daddr 172.27.0.0/24 ct state established,related accept`,
			`MVM-FORWARD iifname "wlan0" oifname "mvm-red" ip daddr 172.27.0.0/24 ct state established,related accept`,
		}, metadata, []string{
			`MVM-FORWARD iifname "mvm-red" oifname "eth0" ip saddr 172.27.0.0/24 accept`,
			`MVM-FORWARD iifname "mvm-red" oifname "wlan0" ip saddr 172.27.0.0/24 accept`,
		}, drops, replies, noInput, []string{
			`MVM-POSTROUTING oifname "eth0" ip saddr 172.27.0.0/24 masquerade`,
			`MVM-POSTROUTING oifname "wlan0" ip saddr 172.27.0.0/24 masquerade`,
		}, hairpin)},
		{"no NAT", inner, slices.Concat(published, metadata, drops, replies, noInput, hairpin)},
		{"services of the gateway", served, slices.Concat(published, nat[0], metadata, nat[1], drops, replies, []string{
			`MVM-NOCLOUDNET-INPUT iifname "mvm-red" ip daddr 172.27.0.1 udp dport 53 accept`,
			`MVM-NOCLOUDNET-INPUT iifname "mvm-red" ip daddr 172.27.0.1 tcp dport 53 accept`,
		}, noInput, nat[2], hairpin)},
	} {
		rules := Rules(c.spec)
		if diff := cmp.Diff(c.want, texts(rules)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		for _, r := range rules {
			if r.CommentTag == nil || *r.CommentTag != "mvm:id:"+r.RuleType || r.NetworkID != "id" || *r.NetworkName != "red" || !r.IsActive {
				t.Errorf("%s: rule %+v is not marked as ours", c.name, r)
			}
		}
	}
}

func TestGuestRules(t *testing.T) {
	tap := TapSpec{Name: TapName("vm1"), Bridge: "mvm-red", NetworkID: "id", VMID: "vm1", VMName: "web", IP: netip.MustParseAddr("172.27.0.2")}
	if rules := GuestRules(tap); len(rules) != 0 {
		t.Errorf("a VM that asks for nothing has %q", texts(rules))
	}
	tap.Isolated = true
	tap.Publish = []Publish{{"tcp", netip.Addr{}, 8080, 80}, {"udp", netip.MustParseAddr("127.0.0.1"), 53, 5353}}
	want := []string{
		`MVM-FORWARD iifname "mvm-red" oifname "mvm-red" ip saddr 172.27.0.2 drop`,
		`MVM-FORWARD iifname "mvm-red" oifname "mvm-red" ip daddr 172.27.0.2 drop`,
		`MVM-PREROUTING fib daddr type local tcp dport 8080 dnat to 172.27.0.2:80`,
		`MVM-PREROUTING ip daddr 127.0.0.1 udp dport 53 dnat to 172.27.0.2:5353`,
		`MVM-OUTPUT fib daddr type local tcp dport 8080 dnat to 172.27.0.2:80`,
		`MVM-OUTPUT ip daddr 127.0.0.1 udp dport 53 dnat to 172.27.0.2:5353`,
	}
	rules := GuestRules(tap)
	if diff := cmp.Diff(want, texts(rules)); diff != "" {
		t.Error(diff)
	}
	for _, r := range rules {
		if *r.CommentTag != "mvm:vm1:"+r.RuleType || r.NetworkID != "id" || *r.NetworkName != "web" {
			t.Errorf("rule %+v is not marked as the VM's", r)
		}
	}
}

func TestNoCloudRules(t *testing.T) {
	rules := NoCloudRules(NoCloudSpec{VMID: "vm", Bridge: "mvm-red", Gateway: red.Gateway, IP: netip.MustParseAddr("172.27.0.2"), Port: 8000})
	want := []string{
		`MVM-NOCLOUDNET-INPUT iifname "mvm-red" ip saddr 172.27.0.2 ip daddr 172.27.0.1 tcp dport 8000 meta mark set 0x6d766d01 accept`,
		`MVM-NOCLOUDNET-INPUT ip daddr 172.27.0.1 tcp dport 8000 drop`,
	}
	if diff := cmp.Diff(want, texts(rules)); diff != "" {
		t.Error(diff)
	}
	for _, r := range rules {
		if *r.CommentTag != "mvm:vm:"+r.RuleType {
			t.Errorf("rule %+v", r)
		}
	}
}

func TestDiff(t *testing.T) {
	rules := Rules(red)
	id, when := int64(7), "2026-01-01T00:00:00Z"
	stored := Rules(red)
	for i := range stored {
		stored[i].ID, stored[i].LastVerifiedAt = &id, &when
	}
	if d := Diff(rules, stored); len(d.Added)+len(d.Removed) != 0 || len(d.Kept) != len(rules) || !InPlace(rules, stored) {
		t.Errorf("equal rules: %+v", d)
	}
	shuffled := slices.Clone(rules)
	slices.Reverse(shuffled)
	if d := Diff(rules, shuffled); len(d.Added)+len(d.Removed) != 0 || InPlace(rules, shuffled) {
		t.Errorf("the same rules in another order: %+v, in place: %v", d, InPlace(rules, shuffled))
	}
	twice := append(slices.Clone(rules), rules[0])
	if d := Diff(rules, twice); len(d.Added) != 0 || len(d.Removed) != 1 || InPlace(rules, twice) {
		t.Errorf("a rule twice: %+v", d)
	}
	other := slices.Clone(rules)
	other[1].Source = "0.0.0.0/0"
	if d := Diff(rules, other); len(d.Added) != 1 || len(d.Removed) != 1 || len(d.Kept) != len(rules)-1 {
		t.Errorf("a changed rule: %+v", d)
	}
	if d := Diff(rules, nil); len(d.Added) != len(rules) || d.Removed != nil || d.Kept != nil || InPlace(rules, nil) {
		t.Errorf("nothing there: %+v", d)
	}
}

func TestUplinks(t *testing.T) {
	all := netip.MustParsePrefix("0.0.0.0/0")
	lan := netip.MustParsePrefix("192.168.0.0/24")
	routes := []Route{{all, "wlan0", 600}, {lan, "lan0", 0}, {all, "eth0", 100}, {all, "wlan0", 700}, {all, "", 5}, {red.Subnet, "mvm-red", 0}}
	if got := Uplinks(routes); !slices.Equal(got, []string{"eth0", "wlan0"}) {
		t.Errorf("Uplinks = %v", got)
	}
	if got := Destinations(routes, "mvm-red", "eth0", "wlan0"); !slices.Equal(got, []netip.Prefix{lan, all}) {
		t.Errorf("Destinations = %v", got)
	}
	if err := CheckUplinks([]string{"eth0"}, []string{"lo", "eth0"}); err != nil {
		t.Error(err)
	}
	err := CheckUplinks([]string{"eth0", "eth9"}, []string{"lo", "eth0"})
	if !errors.Is(err, mvm.ErrNotFound) || !strings.Contains(err.Error(), "eth9") || !strings.Contains(mvm.HintOf(err), "eth0") {
		t.Errorf("a missing uplink: %v, hint %q", err, mvm.HintOf(err))
	}
}
