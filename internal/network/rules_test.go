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
	uplinks, isolated := red, red
	uplinks.NATGateways = []string{"eth0", "wlan0"}
	isolated.NAT, isolated.NATGateways = false, []string{"eth0"}
	drops := []string{
		`MVM-FORWARD iifname != "mvm-red" oifname "mvm-red" drop`,
		`MVM-FORWARD iifname "mvm-red" oifname != "mvm-red" drop`,
	}
	for _, c := range []struct {
		name string
		spec Spec
		want []string
	}{
		{"NAT", red, slices.Concat([]string{
			`MVM-FORWARD iifname != "mvm-red" oifname "mvm-red" ip daddr 172.27.0.0/24 ct state established,related accept`,
			`MVM-FORWARD iifname "mvm-red" oifname != "mvm-red" ip saddr 172.27.0.0/24 accept`,
		}, drops, []string{`MVM-POSTROUTING oifname != "mvm-red" ip saddr 172.27.0.0/24 masquerade`})},
		{"uplinks", uplinks, slices.Concat([]string{
			`MVM-FORWARD iifname "eth0" oifname "mvm-red" ip daddr 172.27.0.0/24 ct state established,related accept`,
			`MVM-FORWARD iifname "wlan0" oifname "mvm-red" ip daddr 172.27.0.0/24 ct state established,related accept`,
			`MVM-FORWARD iifname "mvm-red" oifname "eth0" ip saddr 172.27.0.0/24 accept`,
			`MVM-FORWARD iifname "mvm-red" oifname "wlan0" ip saddr 172.27.0.0/24 accept`,
		}, drops, []string{
			`MVM-POSTROUTING oifname "eth0" ip saddr 172.27.0.0/24 masquerade`,
			`MVM-POSTROUTING oifname "wlan0" ip saddr 172.27.0.0/24 masquerade`,
		})},
		{"isolated", isolated, drops},
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

func TestNoCloudRules(t *testing.T) {
	rules := NoCloudRules(NoCloudSpec{VMID: "vm", Bridge: "mvm-red", Gateway: red.Gateway, IP: netip.MustParseAddr("172.27.0.2"), Port: 8000})
	want := []string{
		`MVM-NOCLOUDNET-INPUT iifname "mvm-red" ip saddr 172.27.0.2/32 ip daddr 172.27.0.1/32 tcp dport 8000 accept`,
		`MVM-NOCLOUDNET-INPUT ip daddr 172.27.0.1/32 tcp dport 8000 drop`,
	}
	if diff := cmp.Diff(want, texts(rules)); diff != "" {
		t.Error(diff)
	}
	for _, r := range rules {
		if *r.CommentTag != "mvm:vm:nocloudnet_input" || r.RuleType != RuleNoCloudNet || RepliesOnly(r) {
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
