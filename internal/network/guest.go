package network

import (
	"net"
	"net/netip"

	"github.com/mvmctl/mvm"
)

// Types of rule that belong to one VM.
const (
	RulePublish       = "publish" // a port of the host leads to the guest
	RuleApart         = "apart"   // an isolated VM, by way of the gateway
	RuleEgressReplies = "egress_replies"
	RuleEgress        = "egress" // what the guest may reach outside, and the end of that
)

// TapSpec is the desired state of a VM's tap, and of what the kernel does for that
// VM alone.
type TapSpec struct {
	Name      string // TapName(VMID)
	Bridge    string
	NetworkID string           // for the rules; "" where there are none
	MAC       net.HardwareAddr // the guest's, not the tap's own
	IP        netip.Addr       // the guest's
	VMID      string
	VMName    string
	Isolated  bool // keeps the VM apart from all others of its network
	OwnerUID  int  // the user who may open the tap; root (0) always may

	Publish []Publish
	Backend Backend // where the rules stand
	Egress  *Egress // what the guest may reach outside; nil for everything
	Limit   Limit
}

// Publish is a port of the host that leads to a port of a guest.
type Publish struct {
	Protocol  string     // "tcp" or "udp"
	HostAddr  netip.Addr // invalid means every address of the host
	HostPort  int
	GuestPort int
}

// Overlaps says whether two ports of the host are one, on some address at least.
func (p Publish) Overlaps(q Publish) bool {
	return p.Protocol == q.Protocol && p.HostPort == q.HostPort && (!p.HostAddr.IsValid() || !q.HostAddr.IsValid() || p.HostAddr == q.HostAddr)
}

// Validate says what a spec lacks, as mvm.ErrInvalid.
func (t TapSpec) Validate() error {
	why := ""
	switch {
	case t.VMID == "" || len(t.VMID) > maxIDLen:
		why = "has no VM id of 1 to 64 characters"
	case !validIfName(t.Name):
		why = "is an impossible interface name"
	case !validIfName(t.Bridge):
		why = "has an impossible bridge name " + mvm.Quote(clip(t.Bridge))
	case len(t.MAC) != 6 || t.MAC[0]&1 != 0:
		why = "has no unicast MAC address"
	case !t.IP.Is4():
		why = "has no IPv4 address"
	case t.OwnerUID < 0:
		why = "has no owner"
	case !t.Backend.known():
		why = "has an unknown firewall backend " + mvm.Quote(clip(string(t.Backend)))
	}
	for _, p := range t.Publish {
		if why == "" {
			why = p.wrong()
		}
	}
	for _, wrong := range []string{t.Egress.wrong(), t.Limit.wrong()} {
		if why == "" {
			why = wrong
		}
	}
	if why != "" {
		return mvm.Errorf(mvm.ErrInvalid, "tap %s of VM %s %s", mvm.Quote(clip(t.Name)), mvm.Quote(clip(t.VMName)), why).
			WithHint("see 'mvm vm inspect'; remove and create the VM anew if it is damaged")
	}
	return nil
}

func (p Publish) wrong() string {
	valid := func(port int) bool { return port >= 1 && port <= 65535 }
	switch {
	case p.Protocol != "tcp" && p.Protocol != "udp":
		return "publishes by an unknown protocol"
	case !valid(p.HostPort) || !valid(p.GuestPort):
		return "publishes an impossible port"
	case p.HostAddr.IsValid() && !p.HostAddr.Is4():
		return "publishes on an address that is not IPv4"
	}
	return ""
}

// ValidateRemoval says what a spec lacks for RemoveTap, as mvm.ErrInvalid.
func (t TapSpec) ValidateRemoval() error {
	if t.VMID == "" || !validIfName(t.Name) {
		return mvm.Errorf(mvm.ErrInvalid, "tap %s has no VM id or no possible name", mvm.Quote(clip(t.Name))).
			WithHint("see 'mvm vm inspect' and 'ip link' for what is left")
	}
	return nil
}

// GuestRules returns the IP rules of one VM; most have none. They stand in chains
// of the VM's own, so that VMs come and go without touching each other's.
func GuestRules(t TapSpec) []mvm.FirewallRule {
	set := &ruleSet{owner: t.VMID, networkID: t.NetworkID, networkName: t.VMName, backend: t.Backend}
	ip := t.IP.String() + "/32"
	if t.Isolated {
		// The bridge keeps it apart; a hostile guest could still send to the
		// gateway's MAC and have the host route it back to a neighbour.
		apart := func(src, dst string) {
			set.add(mvm.FirewallRule{ChainName: ChainForward, RuleType: RuleApart, Source: src, Destination: dst, InInterface: t.Bridge, OutInterface: t.Bridge, Target: TargetDrop})
		}
		apart(ip, "")
		apart("", ip)
	}
	for _, chain := range []string{ChainPrerouting, ChainOutput} {
		for _, p := range t.Publish {
			to := Local
			if p.HostAddr.IsValid() {
				to = p.HostAddr.String() + "/32"
			}
			set.add(mvm.FirewallRule{
				ChainName: chain, RuleType: RulePublish, Destination: to, Protocol: p.Protocol, DPort: p.HostPort,
				Target: TargetDNAT + " " + netip.AddrPortFrom(t.IP, uint16(p.GuestPort)).String(), //nolint:gosec // validated
			})
		}
	}
	return set.rules
}
