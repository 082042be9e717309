package network

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
)

// The chains that our rules stand in, under the names that users of the
// reference know. Each network has its own three, in a table of its own, and each
// NoCloud server has the third in one of its own.
const (
	ChainForward     = "MVM-FORWARD"
	ChainPostrouting = "MVM-POSTROUTING"
	ChainInput       = "MVM-NOCLOUDNET-INPUT"
)

// Types of rule. A FORWARD rule never matches traffic within one bridge, which
// the kernel shows to FORWARD too where bridge-nf-call-iptables is on.
const (
	RuleMasquerade = "masquerade"
	RuleForwardIn  = "forward_in"       // to the guests; with ACCEPT and no port only replies (conntrack established, related)
	RuleForwardOut = "forward_out"      // from the guests
	RuleNoCloudNet = "nocloudnet_input" // to the server that a guest's cloud-init reads from
)

// The targets that our rules have.
const (
	TargetAccept     = "ACCEPT"
	TargetDrop       = "DROP"
	TargetMasquerade = "MASQUERADE"
)

// Tag returns how the comment of a network's rule begins.
func Tag(networkID string) string { return aliasPrefix + networkID }

// Rules returns the firewall rules of a network, chain by chain in the order in
// which they have to stand. Interfaces with a leading '!' mean all but that one.
//
// With NAT: replies and the guests' own addresses pass, through the uplinks if
// some are named, and leave with the host's address. All else is dropped on its
// way in or out, so that networks are apart from each other whatever order they
// were made in. Without NAT everything is dropped: the host alone is reachable.
func Rules(s Spec) []mvm.FirewallRule {
	subnet := s.Subnet.String()
	outside := "!" + s.Bridge
	var rules []mvm.FirewallRule
	add := func(chain, kind, src, dst, in, out, target string) {
		table := "filter"
		if chain == ChainPostrouting {
			table = "nat"
		}
		name, tag := s.Name, Tag(s.NetworkID)+":"+kind
		r := mvm.FirewallRule{
			TableName: table, ChainName: chain, RuleType: kind, Protocol: "all", Source: src, Destination: dst,
			InInterface: in, OutInterface: out, Target: target, NetworkID: s.NetworkID, NetworkName: &name, CommentTag: &tag, IsActive: true,
		}
		text := Text(r)
		r.CommandString = &text
		rules = append(rules, r)
	}
	uplinks := []string{outside}
	if len(s.NATGateways) > 0 {
		uplinks = s.NATGateways
	}
	if s.NAT {
		for _, u := range uplinks {
			add(ChainForward, RuleForwardIn, "", subnet, u, s.Bridge, TargetAccept)
		}
		for _, u := range uplinks {
			add(ChainForward, RuleForwardOut, subnet, "", s.Bridge, u, TargetAccept)
		}
	}
	add(ChainForward, RuleForwardIn, "", "", outside, s.Bridge, TargetDrop)
	add(ChainForward, RuleForwardOut, "", "", s.Bridge, outside, TargetDrop)
	if s.NAT {
		for _, u := range uplinks {
			add(ChainPostrouting, RuleMasquerade, subnet, "", "", u, TargetMasquerade)
		}
	}
	return rules
}

// NoCloudRules returns the rules by which one guest, and nobody else, reaches the
// server that its cloud-init reads from.
func NoCloudRules(s NoCloudSpec) []mvm.FirewallRule {
	gateway := netip.PrefixFrom(s.Gateway, 32).String()
	tag := Tag(s.VMID) + ":" + RuleNoCloudNet
	one := mvm.FirewallRule{
		TableName: "filter", ChainName: ChainInput, RuleType: RuleNoCloudNet, Protocol: "tcp", Source: netip.PrefixFrom(s.IP, 32).String(), Destination: gateway,
		InInterface: s.Bridge, Target: TargetAccept, DPort: s.Port, CommentTag: &tag, IsActive: true,
	}
	others := one
	others.Source, others.InInterface, others.Target = "", "", TargetDrop
	rules := []mvm.FirewallRule{one, others}
	for i := range rules {
		text := Text(rules[i])
		rules[i].CommandString = &text
	}
	return rules
}

// RepliesOnly says whether a rule matches only packets of connections that the
// other side began.
func RepliesOnly(r mvm.FirewallRule) bool {
	return r.RuleType == RuleForwardIn && r.Target == TargetAccept && r.DPort == 0
}

// Text returns a rule in nft's notation, for people; it is not parsed again.
func Text(r mvm.FirewallRule) string {
	var b strings.Builder
	b.WriteString(r.ChainName)
	iface := func(key, name string) {
		if name, not := strings.CutPrefix(name, "!"); not {
			b.WriteString(" " + key + ` != "` + name + `"`)
		} else if name != "" {
			b.WriteString(" " + key + ` "` + name + `"`)
		}
	}
	iface("iifname", r.InInterface)
	iface("oifname", r.OutInterface)
	if r.Source != "" {
		b.WriteString(" ip saddr " + r.Source)
	}
	if r.Destination != "" {
		b.WriteString(" ip daddr " + r.Destination)
	}
	if r.DPort != 0 {
		b.WriteString(" " + r.Protocol + " dport " + strconv.Itoa(r.DPort))
	}
	if RepliesOnly(r) {
		b.WriteString(" ct state established,related")
	}
	b.WriteString(" " + strings.ToLower(r.Target))
	if r.CommentTag != nil {
		b.WriteString(` comment "` + *r.CommentTag + `"`)
	}
	return b.String()
}

// RuleDiff is how desired and observed rules differ.
type RuleDiff struct {
	Added   []mvm.FirewallRule // desired, not there
	Removed []mvm.FirewallRule // there, not desired
	Kept    []mvm.FirewallRule // both; as observed
}

// Diff compares rules by what they do and by their comment, whatever their
// order, ids and times. A rule that is there twice is wanted once.
func Diff(desired, observed []mvm.FirewallRule) RuleDiff {
	var d RuleDiff
	left := slices.Clone(observed)
	for _, want := range desired {
		i := slices.IndexFunc(left, func(r mvm.FirewallRule) bool { return ruleKey(r) == ruleKey(want) })
		if i < 0 {
			d.Added = append(d.Added, want)
			continue
		}
		d.Kept = append(d.Kept, left[i])
		left = slices.Delete(left, i, i+1)
	}
	d.Removed = left
	if len(left) == 0 {
		d.Removed = nil
	}
	return d
}

// InPlace says whether the observed rules are exactly the desired ones, and
// within each chain in the desired order.
func InPlace(desired, observed []mvm.FirewallRule) bool {
	if len(desired) != len(observed) {
		return false
	}
	for _, chain := range []string{ChainForward, ChainPostrouting, ChainInput} {
		if !slices.Equal(keysIn(chain, desired), keysIn(chain, observed)) {
			return false
		}
	}
	return len(Diff(desired, observed).Added) == 0
}

func keysIn(chain string, rules []mvm.FirewallRule) []key {
	var keys []key
	for _, r := range rules {
		if r.ChainName == chain {
			keys = append(keys, ruleKey(r))
		}
	}
	return keys
}

// key is all that makes two rules the same.
type key struct {
	table, chain, kind, protocol, src, dst, in, out, target, tag string
	sport, dport                                                 int
}

func ruleKey(r mvm.FirewallRule) key {
	k := key{
		r.TableName, r.ChainName, r.RuleType, r.Protocol, r.Source, r.Destination,
		r.InInterface, r.OutInterface, r.Target, "", r.SPort, r.DPort,
	}
	if r.CommentTag != nil {
		k.tag = *r.CommentTag
	}
	return k
}
