package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
)

// The chains that our rules stand in, under the names that users of the
// reference know. Each network has its own, in a table of its own, and so has
// each VM that needs rules.
const (
	ChainForward     = "MVM-FORWARD"
	ChainPostrouting = "MVM-POSTROUTING"
	ChainInput       = "MVM-NOCLOUDNET-INPUT"
	ChainPrerouting  = "MVM-PREROUTING" // ports of the host, for what comes from elsewhere
	ChainOutput      = "MVM-OUTPUT"     // the same for what the host sends itself
)

// Chains lists all of them in the order in which tables have them.
func Chains() []string {
	return []string{ChainForward, ChainInput, ChainPostrouting, ChainPrerouting, ChainOutput}
}

// TableOf returns which table of iptables a chain of ours belongs to.
func TableOf(chain string) string {
	if chain == ChainForward || chain == ChainInput {
		return "filter"
	}
	return "nat"
}

// Types of rule. A FORWARD rule of a network never matches traffic within one
// bridge, which the kernel shows to FORWARD too where bridge-nf-call-iptables is
// on.
const (
	RuleMasquerade   = "masquerade"
	RuleForwardIn    = "forward_in"    // to the guests; with ACCEPT only replies
	RuleForwardOut   = "forward_out"   // from the guests
	RulePublishedIn  = "published_in"  // connections to ports of the host that lead to guests
	RulePublishedOut = "published_out" // and their replies
	RuleHairpin      = "hairpin"       // the same from a neighbour: replies have to come back through the host
	RuleHairpinLocal = "hairpin_local" // the same from the host's own loopback
	RuleInputReplies = "input_replies" // to connections that the host began
	RuleInputPing    = "input_ping"
	RuleInputDNS     = "input_dns"
	RuleInput        = "input" // whatever else guests send to the host

	RuleNocloudInput  = "nocloudnet_input" // to the server that a guest's cloud-init reads from
	RuleNocloudOthers = "nocloudnet_others"
)

// The targets that our rules have. A DNAT target goes on with " ADDRESS:PORT"; MARK
// marks the packet for the network's table, and accepts it.
const (
	TargetAccept     = "ACCEPT"
	TargetDrop       = "DROP"
	TargetMasquerade = "MASQUERADE"
	TargetDNAT       = "DNAT"
	TargetMark       = "MARK"
)

// Local as a destination means any address of the host.
const Local = "local"

// metadataRange is link-local: no router may forward it (RFC 3927), and clouds
// serve the host's credentials there (169.254.169.254).
const metadataRange = "169.254.0.0/16"

// loopback is what the host calls itself.
const loopback = "127.0.0.0/8"

// Match is what a rule matches beyond its fields; it follows from the rule's type.
type Match string

// The matches, as nft writes them.
const (
	MatchNone    Match = ""
	MatchReplies Match = "ct state established,related"
	MatchDNAT    Match = "ct status dnat"
	MatchDNATOut Match = "ct status dnat ct direction reply"
	MatchPing    Match = "icmp type echo-request"
	MatchMarked  Match = "meta mark 0x6d766d01"
)

// MatchOf returns what a rule matches beyond its fields.
func MatchOf(r mvm.FirewallRule) Match {
	switch r.RuleType {
	case RuleForwardIn, RuleEgressReplies:
		if r.Target == TargetAccept {
			return MatchReplies
		}
	case RuleInputReplies:
		return MatchReplies
	case RulePublishedIn, RuleHairpin:
		return MatchDNAT
	case RulePublishedOut:
		return MatchDNATOut
	case RuleInputPing:
		return MatchPing
	case RuleNocloudInput:
		if r.Target == TargetAccept {
			return MatchMarked
		}
	case RuleEgressDenied:
		if r.Protocol == "all" {
			return MatchNoPorts
		}
	}
	return MatchNone
}

// Tag returns how the comment of a network's or VM's rule begins.
func Tag(id string) string { return aliasPrefix + id }

// ruleSet collects rules of one owner.
type ruleSet struct {
	owner, networkID, networkName string
	backend                       Backend
	rules                         []mvm.FirewallRule
}

// add fills in what follows from the rest.
func (s *ruleSet) add(r mvm.FirewallRule) {
	r.TableName = TableOf(r.ChainName)
	if r.Protocol == "" {
		r.Protocol = "all"
	}
	name, tag := s.networkName, Tag(s.owner)+":"+r.RuleType
	r.NetworkID, r.NetworkName, r.CommentTag, r.IsActive = s.networkID, &name, &tag, true
	text := TextIn(s.backend, r)
	r.CommandString = &text
	s.rules = append(s.rules, r)
}

// Rules returns the firewall rules of a network, chain by chain in the order in
// which they have to stand. Interfaces with a leading '!' mean all but that one.
//
// Forwarded, with NAT: replies and the guests' own addresses pass, through the
// uplinks if some are named, and leave with the host's address; link-local
// addresses are never forwarded. All else is dropped on its way in or out, so that
// networks are apart from each other whatever order they were made in. Without NAT
// everything is dropped but what belongs to ports of the host that were published.
//
// To the host itself: replies, pings of the gateway, its DNS if it has one, and the
// NoCloud server of the very guest. Nothing else, whatever address of the host it
// is sent to.
func Rules(s Spec) []mvm.FirewallRule {
	set := &ruleSet{owner: s.NetworkID, networkID: s.NetworkID, networkName: s.Name, backend: s.Backend}
	subnet, in, out := s.Subnet.String(), s.Bridge, "!"+s.Bridge
	uplinks := []string{out}
	if len(s.NATGateways) > 0 {
		uplinks = s.NATGateways
	}
	if !s.NAT {
		uplinks = nil
	}
	forward := func(kind, src, dst, iif, oif, target string) {
		set.add(mvm.FirewallRule{ChainName: ChainForward, RuleType: kind, Source: src, Destination: dst, InInterface: iif, OutInterface: oif, Target: target})
	}
	forward(RulePublishedIn, "", subnet, out, in, TargetAccept)
	forward(RulePublishedOut, subnet, "", in, out, TargetAccept)
	for _, u := range uplinks {
		forward(RuleForwardIn, "", subnet, u, in, TargetAccept)
	}
	forward(RuleForwardOut, "", metadataRange, in, out, TargetDrop)
	for _, u := range uplinks {
		forward(RuleForwardOut, subnet, "", in, u, TargetAccept)
	}
	forward(RuleForwardIn, "", "", out, in, TargetDrop)
	forward(RuleForwardOut, "", "", in, out, TargetDrop)
	set.input(s)
	nat := func(kind, src, oif string) {
		set.add(mvm.FirewallRule{ChainName: ChainPostrouting, RuleType: kind, Source: src, OutInterface: oif, Target: TargetMasquerade})
	}
	for _, u := range uplinks {
		nat(RuleMasquerade, subnet, u)
	}
	nat(RuleHairpin, subnet, in)
	nat(RuleHairpinLocal, loopback, in)
	return set.rules
}

// input adds what guests may reach on the host.
func (set *ruleSet) input(s Spec) {
	gateway := s.Gateway.String() + "/32"
	input := func(kind, src, dst, protocol string, port int, target string) {
		set.add(mvm.FirewallRule{ChainName: ChainInput, RuleType: kind, Source: src, Destination: dst, InInterface: s.Bridge, Protocol: protocol, DPort: port, Target: target})
	}
	input(RuleInputReplies, "", "", "", 0, TargetAccept)
	input(RuleInputPing, "", gateway, "icmp", 0, TargetAccept)
	if s.DNS {
		input(RuleInputDNS, "", gateway, "udp", 53, TargetAccept)
		input(RuleInputDNS, "", gateway, "tcp", 53, TargetAccept)
	}
	input(RuleNocloudInput, "", gateway, "", 0, TargetAccept)
	input(RuleInput, "", "", "", 0, TargetDrop)
}

// TextIn returns a rule in the notation of a backend, for people.
func TextIn(b Backend, r mvm.FirewallRule) string {
	if b == IPTables {
		return iptablesText(r)
	}
	return Text(r)
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
	address := func(key, addr string) {
		if addr, whole := strings.CutSuffix(addr, "/32"); addr != "" || whole {
			b.WriteString(" " + key + " " + addr)
		}
	}
	address("ip saddr", r.Source)
	if r.Destination == Local {
		b.WriteString(" fib daddr type local")
	} else {
		address("ip daddr", r.Destination)
	}
	if r.DPort != 0 {
		b.WriteString(" " + r.Protocol + " dport " + strconv.Itoa(r.DPort))
	}
	if r.DPort == 0 && r.Protocol != "" && r.Protocol != "all" && r.Protocol != "icmp" {
		b.WriteString(" meta l4proto " + r.Protocol)
	}
	if m := MatchOf(r); m != MatchNone {
		b.WriteString(" " + string(m))
	}
	switch to, dnat := strings.CutPrefix(r.Target, TargetDNAT+" "); {
	case dnat:
		b.WriteString(" dnat to " + to)
	case r.Target == TargetRecord && r.Protocol == "all":
		b.WriteString(" update " + DeniedAddresses + " { ip daddr . meta l4proto . 0 counter }")
	case r.Target == TargetRecord:
		b.WriteString(" update " + DeniedAddresses + " { ip daddr . meta l4proto . th dport counter }")
	case r.Target == TargetMark:
		b.WriteString(fmt.Sprintf(" meta mark set %#x accept", NoCloudMark))
	default:
		b.WriteString(" " + strings.ToLower(r.Target))
	}
	if r.CommentTag != nil {
		b.WriteString(` comment "` + *r.CommentTag + `"`)
	}
	return b.String()
}

// DNATTo returns where a DNAT target leads, and whether it is one.
func DNATTo(target string) (netip.AddrPort, bool) {
	to, is := strings.CutPrefix(target, TargetDNAT+" ")
	ap, err := netip.ParseAddrPort(to)
	return ap, is && err == nil
}
