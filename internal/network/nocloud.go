package network

import (
	"net/netip"
	"strings"

	"github.com/mvmctl/mvm"
)

// NoCloudSpec is the desired state of the rules for the server that a VM's
// cloud-init reads from.
type NoCloudSpec struct {
	VMID    string
	Bridge  string
	Gateway netip.Addr // what the server listens on
	IP      netip.Addr // the guest's
	Port    int
	Backend Backend // where the rules stand
}

// Table is the name of the nftables table that the rules are in.
func (n NoCloudSpec) Table() string { return "mvm-nocloud-" + n.VMID }

// Validate says what a spec lacks, as mvm.ErrInvalid.
func (n NoCloudSpec) Validate() error {
	why := ""
	switch {
	case !validIfName(n.Bridge):
		why = "has an impossible bridge name " + mvm.Quote(clip(n.Bridge))
	case !n.Gateway.Is4() || !n.IP.Is4():
		why = "has no IPv4 addresses"
	case n.Port < 1 || n.Port > 65535:
		why = "has no port"
	case !n.Backend.known():
		why = "has an unknown firewall backend " + mvm.Quote(clip(string(n.Backend)))
	default:
		return n.ValidateRemoval()
	}
	return mvm.Errorf(mvm.ErrInvalid, "the NoCloud server of VM %s %s", mvm.Quote(clip(n.VMID)), why).
		WithHint("see 'mvm vm inspect'; remove and create the VM anew if it is damaged")
}

// ValidateRemoval says what a spec lacks for RemoveNoCloud, as mvm.ErrInvalid.
func (n NoCloudSpec) ValidateRemoval() error {
	if n.VMID == "" || len(n.VMID) > maxIDLen || strings.ContainsFunc(n.VMID, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '/' }) {
		return mvm.Errorf(mvm.ErrInvalid, "the NoCloud server of VM %s has no VM id of 1 to 64 characters", mvm.Quote(clip(n.VMID))).
			WithHint("see 'mvm vm inspect'")
	}
	return nil
}

// NoCloudMark marks packets to a NoCloud server between its own table and its
// network's, which drops what else guests send to the host: an accept in one table
// does not bind the next. The mark is gone with the packet.
const NoCloudMark = 0x6d766d01

// NoCloudRules returns the rules by which one guest, and nobody else, reaches the
// server that its cloud-init reads from.
func NoCloudRules(s NoCloudSpec) []mvm.FirewallRule {
	set := &ruleSet{owner: s.VMID, backend: s.Backend}
	gateway := s.Gateway.String() + "/32"
	set.add(mvm.FirewallRule{
		ChainName: ChainInput, RuleType: RuleNocloudInput, Source: s.IP.String() + "/32", Destination: gateway, InInterface: s.Bridge,
		Protocol: "tcp", DPort: s.Port, Target: TargetMark,
	})
	set.add(mvm.FirewallRule{ChainName: ChainInput, RuleType: RuleNocloudOthers, Destination: gateway, Protocol: "tcp", DPort: s.Port, Target: TargetDrop})
	return set.rules
}
