// Package network is the pure part of networking: names of interfaces,
// addresses and subnets, the desired state of a network (bridge, gateway,
// firewall rules, taps), the difference between desired and observed rules, and
// the Kernel interface through which the desired state is made real.
//
// It does no input or output, and it must not know netlink, nftables, the store
// or VMs beyond their ids. Package linux implements Kernel.
package network

import (
	"context"
	"net/netip"
	"slices"

	"github.com/mvmctl/mvm"
)

// Kernel makes the desired state of networks and taps real, and tells what is
// there. It is implemented by package linux, for the network namespace of the
// calling thread, and by nettest.Fake; nettest.Suite holds for both.
//
// Ownership. A bridge or tap is ours when its interface alias is Alias(id) of
// the network's or VM's id; rules of ours carry comments that begin with
// Tag(network id). Ensure and Add refuse with mvm.ErrExists, before any effect,
// when a device or table of somebody else has the name. Remove leaves such an
// object alone and returns nil: afterwards nothing of ours has the name.
//
// Idempotence. Every method may be repeated, and brings a half-made or damaged
// object to the desired state. One that fails or is killed midway leaves an
// object that the same method, or the removal, takes up again; it rolls nothing
// back by itself. An object that is right already is not written to, so live
// connections are not disturbed.
//
// Concurrency. Methods may be called at once from several processes, for the
// same object too. Nothing is shared between networks, nor between taps, so no
// call depends on what another one reads.
//
// Contexts. A cancelled context makes a method return its error before the next
// step.
//
// Errors. mvm.ErrPrivilege where the process may not configure the network,
// mvm.ErrInvalid for a spec that is not complete, mvm.ErrExists as above,
// mvm.ErrNotFound for a tap whose bridge is missing, mvm.ErrUnsupported where
// the kernel lacks something, mvm.ErrUnavailable for the rest.
type Kernel interface {
	// EnsureNetwork makes the bridge with the gateway's address, up, the firewall
	// rules Rules(s), and PassageRules(s) where other programs drop what they do
	// not accept; with NAT or published ports it turns on IPv4
	// forwarding. It returns what it changed, which is nothing when all was right.
	EnsureNetwork(ctx context.Context, s Spec) ([]Change, error)

	// RemoveNetwork removes the bridge and the rules. Taps on it stay, without
	// a bridge. IPv4 forwarding stays on: others may rely on it by now.
	RemoveNetwork(ctx context.Context, s Spec) error

	// Observe tells what is there of a network. Without privilege it sets
	// RulesUnknown instead of failing.
	Observe(ctx context.Context, s Spec) (Observed, error)

	// AddTap makes the VM's tap, persistent and up, on the bridge, the guard
	// that drops what does not come from the guest's own MAC and IP, the rules
	// GuestRules(t) and EgressRules(t), and the limits. When egress rules are
	// written, connections that the guest has begun are decided over anew, and
	// addresses that were opened are closed. A bridge that has MaxPorts taps
	// gives mvm.ErrUnavailable.
	AddTap(ctx context.Context, t TapSpec) error

	// OpenEgress opens addresses for a guest whose rules have names; of those that
	// are open it sets the time anew. Only Name and VMID are read. mvm.ErrNotFound
	// where there are no such rules.
	OpenEgress(ctx context.Context, t TapSpec, addrs []OpenAddr) error

	// Denials tells what a guest was not let to. Only Name and VMID are read. It is
	// nothing where there are no egress rules, and mvm.ErrPrivilege where they may
	// not be read.
	Denials(ctx context.Context, t TapSpec) (Denials, error)

	// RemoveTap removes the tap, its guard and its rules. Only Name and VMID
	// are read.
	RemoveTap(ctx context.Context, t TapSpec) error

	// AllowNoCloud lets one guest, and nobody else, reach a port of its gateway.
	AllowNoCloud(ctx context.Context, n NoCloudSpec) error

	// RemoveNoCloud removes what AllowNoCloud made. Only VMID is read.
	RemoveNoCloud(ctx context.Context, n NoCloudSpec) error

	// ObserveTap tells what the kernel has of a VM's rules. Without privilege it
	// sets RulesUnknown instead of failing.
	ObserveTap(ctx context.Context, t TapSpec) (ObservedTap, error)

	// Taps lists the taps that are ours, by name.
	Taps(ctx context.Context) ([]Tap, error)

	// HostRoutes lists the IPv4 routes of the main table, those of our own
	// bridges included.
	HostRoutes(ctx context.Context) ([]Route, error)

	// HostAddresses lists the IPv4 addresses of all interfaces, those that are
	// down and our own bridges included.
	HostAddresses(ctx context.Context) ([]Address, error)

	// Interfaces lists the names of all network interfaces.
	Interfaces(ctx context.Context) ([]string, error)
}

// Backend is what carries our IP rules. What keeps a guest to its own MAC and IP
// address, and apart from its neighbours, is nftables' with either of them.
type Backend string

// The backends; "" is NFTables.
const (
	NFTables Backend = "nftables"
	IPTables Backend = "iptables"
)

// OrDefault returns the backend, NFTables where none is named.
func (b Backend) OrDefault() Backend {
	if b == "" {
		return NFTables
	}
	return b
}

// known says whether there is such a backend.
func (b Backend) known() bool { return b == "" || b == NFTables || b == IPTables }

// Spec is the desired state of a network.
type Spec struct {
	NetworkID   string
	Name        string
	Bridge      string // BridgeName(Name)
	Subnet      netip.Prefix
	Gateway     netip.Addr // the host's address on the bridge
	NAT         bool       // guests reach the outside by the host's address; without it the network has no way out
	NATGateways []string   // the uplinks that guests may leave by; none means whichever the host's routes say
	Published   bool       // ports of the host lead to guests
	Loopback    bool       // and some of them also for what the host sends to its own 127.0.0.1
	DNS         bool       // the gateway answers DNS
	Backend     Backend    // where the rules stand
}

// Validate says what a spec lacks, as mvm.ErrInvalid.
func (s Spec) Validate() error {
	why := ""
	switch {
	case s.NetworkID == "" || len(s.NetworkID) > maxIDLen:
		why = "has no id of 1 to 64 characters"
	case !validIfName(s.Bridge):
		why = "has an impossible bridge name " + mvm.Quote(clip(s.Bridge))
	case !s.Subnet.IsValid() || !s.Subnet.Addr().Is4() || s.Subnet != s.Subnet.Masked():
		why = "has no IPv4 subnet"
	case !s.Subnet.Contains(s.Gateway):
		why = "has no gateway in its subnet"
	case !s.Backend.known():
		why = "has an unknown firewall backend " + mvm.Quote(clip(string(s.Backend)))
	}
	for _, u := range s.NATGateways {
		if why == "" && !validIfName(u) {
			why = "has an impossible uplink " + mvm.Quote(clip(u))
		}
	}
	if why != "" {
		return mvm.Errorf(mvm.ErrInvalid, "network %s %s", mvm.Quote(clip(s.Name)), why).
			WithHint("see 'mvm network inspect'; remove and create the network anew if it is damaged")
	}
	return nil
}

// Change is something of the host that was changed, for the record.
type Change struct {
	What string // "bridge mvm-default", "sysctl net.ipv4.ip_forward", …
	Old  string // "" when it was not there
	New  string
}

// ForwardingSysctl is the What of the change that turns IPv4 forwarding on; it
// is the only one that RemoveNetwork does not undo.
const ForwardingSysctl = "sysctl net.ipv4.ip_forward"

// Observed is what is there of a network.
type Observed struct {
	Exists     bool // the bridge is there and ours
	Foreign    bool // somebody else's device has the bridge's name; the rest is then empty
	Up         bool // administratively
	Gateway    bool // the bridge has the gateway's address
	Forwarding bool // the host forwards IPv4
	Rules      []mvm.FirewallRule

	// Passages are what of other programs is in the guests' way, and whether it lets
	// them through.
	Passages []Passage

	// Right says that EnsureNetwork would change nothing.
	Right bool

	// RulesUnknown says that the process may not read rules. The rest is known
	// to everyone.
	RulesUnknown bool
}

// Active says whether the network serves guests.
func (o Observed) Active() bool { return o.Exists && o.Up && o.Gateway }

// ObservedTap is what the kernel has of a VM's rules.
type ObservedTap struct {
	Rules        []mvm.FirewallRule
	Right        bool // guard and rules are as AddTap would leave them
	RulesUnknown bool // the process may not read rules
}

// Tap is a tap of ours as it is.
type Tap struct {
	Name     string
	VMID     string // from the alias
	Bridge   string // "" when it is on none
	Up       bool
	Isolated bool
	Guarded  bool // the rules against forged addresses are there; false too where they cannot be read
}

// ForwardsNeeded says whether the host has to forward IPv4 for a network.
func (s Spec) ForwardsNeeded() bool { return s.NAT || s.Published }

// Route is a route of the host.
type Route struct {
	Dst       netip.Prefix // 0.0.0.0/0 for the default route
	Interface string       // "" for blackhole and its like
	Metric    int
}

// Address is an IPv4 address of the host, with the prefix of what is reached
// directly by it.
type Address struct {
	Prefix    netip.Prefix
	Interface string
}

// Clash is something of the host that a subnet would hide.
type Clash struct {
	Prefix    netip.Prefix
	Interface string // "" for a blackhole route and its like
}

// HostClash returns what of the host's routes and addresses shares addresses with
// a subnet, nil for nothing. An interface named in except does not count. Loopback
// addresses never clash with a subnet that is valid.
func HostClash(p netip.Prefix, routes []Route, addrs []Address, except ...string) *Clash {
	for _, a := range addrs {
		if !slices.Contains(except, a.Interface) && (p.Contains(a.Prefix.Addr()) || a.Prefix.Bits() >= minBits && a.Prefix.Overlaps(p)) {
			return &Clash{a.Prefix, a.Interface}
		}
	}
	for _, r := range routes {
		if r.Interface != "" && slices.Contains(except, r.Interface) {
			continue
		}
		if _, clash := Overlapping(p, []netip.Prefix{r.Dst}); clash {
			return &Clash{r.Dst, r.Interface}
		}
	}
	return nil
}

// Destinations returns where the routes lead, without those through the
// interfaces named, for FreeSubnet and Overlapping.
func Destinations(routes []Route, except ...string) []netip.Prefix {
	var dst []netip.Prefix
	for _, r := range routes {
		if r.Interface == "" || !slices.Contains(except, r.Interface) {
			dst = append(dst, r.Dst)
		}
	}
	return dst
}

// Uplinks returns the interfaces that have a default route, the one with the
// lowest metric first.
func Uplinks(routes []Route) []string {
	defaults := slices.DeleteFunc(slices.Clone(routes), func(r Route) bool { return r.Dst.Bits() != 0 || r.Interface == "" })
	slices.SortStableFunc(defaults, func(a, b Route) int { return a.Metric - b.Metric })
	var names []string
	for _, r := range defaults {
		if !slices.Contains(names, r.Interface) {
			names = append(names, r.Interface)
		}
	}
	return names
}

// CheckUplinks says with mvm.ErrNotFound which of the uplinks named is not
// among the host's interfaces.
func CheckUplinks(want, interfaces []string) error {
	for _, w := range want {
		if slices.Contains(interfaces, w) {
			continue
		}
		e := mvm.Errorf(mvm.ErrNotFound, "this host has no interface %s", mvm.Quote(clip(w)))
		if near := mvm.Nearest(w, interfaces); len(near) > 0 {
			return e.WithHint("did you mean %s?", near[0])
		}
		return e.WithHint("see 'ip link' for the interfaces, or leave the uplinks out to follow the default route")
	}
	return nil
}

// maxIDLen keeps a rule's comment within the 128 bytes that nft reads back.
const maxIDLen = 64

// validIfName is the kernel's dev_valid_name, narrowed to printable ASCII
// without quotes and '!' (which marks a negation in rules).
func validIfName(s string) bool {
	if s == "" || len(s) > maxIfName || s == "." || s == ".." {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '"' || c == '!' || c == '*' {
			return false
		}
	}
	return true
}
