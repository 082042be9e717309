package network

import (
	"net/netip"
	"time"

	"github.com/mvmctl/mvm"
)

// Egress is what a guest may reach outside its network. Neighbours on its bridge and
// the host are not outside.
type Egress struct {
	Networks []netip.Prefix
	Names    bool // and the addresses that OpenEgress opens
}

// The sets of a VM's egress rules.
const (
	NamedAddresses  = "@names"  // as a destination: addresses that are open for a time
	DeniedAddresses = "@denied" // where what was dropped was sent to
)

// TargetRecord notes where a packet is sent to, and goes on.
const TargetRecord = "RECORD"

// Types of the rules by which addresses are open for a time, and what is dropped is
// noted.
const (
	RuleEgressNames  = "egress_names"
	RuleEgressDenied = "egress_denied"
)

// MatchNoPorts matches protocols other than those whose ports are noted.
const MatchNoPorts Match = "meta l4proto != { tcp, udp }"

// Bounds of what is kept of a VM's egress. A guest may send to as many destinations
// as it likes: beyond MaxDenied they are counted but not noted.
const (
	MaxNamed     = 4096
	MaxDenied    = 1024
	DeniedMemory = time.Hour // after the last packet
)

// EgressTable is the name of the nftables table that a tap's egress rules are in.
func EgressTable(tap string) string { return tap + "-egress" }

// EgressRules returns the rules that hold a guest to its list; none without one.
// Like the guard they are nftables' with either backend: sets carry the addresses of
// names, counters, and where packets were sent to. A drop there is final whatever
// other rules accept.
//
// What the outside began, and what goes on, passes: the rules decide over what the
// guest begins. When a list becomes shorter, what goes on is forgotten (see AddTap).
func EgressRules(t TapSpec) []mvm.FirewallRule {
	if t.Egress == nil {
		return nil
	}
	set := &ruleSet{owner: t.VMID, networkID: t.NetworkID, networkName: t.VMName}
	add := func(kind, dst, protocol, target string) {
		set.add(mvm.FirewallRule{
			ChainName: ChainForward, RuleType: kind, Source: t.IP.String() + "/32", Destination: dst, Protocol: protocol,
			InInterface: t.Bridge, OutInterface: "!" + t.Bridge, Target: target,
		})
	}
	add(RuleEgressReplies, "", "", TargetAccept)
	for _, p := range t.Egress.Networks {
		dst := p.String()
		if p.Bits() == 0 {
			dst = ""
		}
		add(RuleEgress, dst, "", TargetAccept)
	}
	if t.Egress.Names {
		add(RuleEgressNames, NamedAddresses, "", TargetAccept)
	}
	for _, protocol := range []string{"tcp", "udp", ""} {
		add(RuleEgressDenied, "", protocol, TargetRecord)
	}
	add(RuleEgress, "", "", TargetDrop)
	return set.rules
}

// OpenAddr is an address that a guest may reach for a time.
type OpenAddr struct {
	Addr netip.Addr
	For  time.Duration
}

// Denials are what a guest sent outside and was not let to, since its rules were
// written: when the VM was started, or its list changed.
type Denials struct {
	Packets uint64
	Bytes   uint64
	To      []Denial // in the last hour, the latest first; at most MaxDenied
}

// Denial is a destination of packets that were dropped.
type Denial struct {
	Addr     netip.Addr
	Protocol uint8  // of IP
	Port     uint16 // 0 for protocols other than TCP and UDP
	Packets  uint64
	Bytes    uint64
	Last     time.Time
}

// Limit bounds what passes a tap, in each direction; 0 does not bound.
type Limit struct {
	BytesPerSec   int64
	PacketsPerSec int64
	BurstBytes    int64 // what may pass at once beyond the rate, after a rest
}

func (l Limit) wrong() string {
	switch {
	case l.BytesPerSec < 0 || l.PacketsPerSec < 0 || l.BurstBytes < 0:
		return "has a negative limit"
	case l.BurstBytes > 0 && l.BytesPerSec == 0:
		return "has a burst without a rate"
	}
	return ""
}

// wrong says what is wrong with a list.
func (e *Egress) wrong() string {
	if e == nil {
		return ""
	}
	for _, p := range e.Networks {
		if !p.IsValid() || !p.Addr().Is4() || p != p.Masked() {
			return "may reach a network that is not IPv4"
		}
	}
	return ""
}
