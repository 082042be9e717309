package linux

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// forwardingFile is net.ipv4.ip_forward of the calling thread's namespace.
const forwardingFile = "/proc/sys/net/ipv4/ip_forward"

// EnsureNetwork implements network.Kernel.
func (k *Kernel) EnsureNetwork(ctx context.Context, spec network.Spec) ([]network.Change, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	s, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	br, err := s.bridge(spec)
	if err != nil {
		return nil, err
	}
	fw, err := k.openFilters()
	if err != nil {
		return nil, err
	}
	defer fw.close()
	rules := networkGroup(spec)
	was, err := fw.readOurs(ctx, spec.Backend, rules)
	if err != nil {
		return nil, err
	}
	changes, err := s.ensureBridge(br, spec)
	if err != nil {
		return changes, err
	}
	if err := ctx.Err(); err != nil {
		return changes, err
	}
	if !was.right {
		if err := fw.in(spec.Backend).put(ctx, rules, was); err != nil {
			return changes, err
		}
		changes = append(changes, network.Change{What: fw.in(spec.Backend).title(rules), Old: presence(was.exists), New: "present"})
	}
	opened, err := k.ensurePassages(ctx, fw, spec)
	if changes = append(changes, opened...); err != nil {
		return changes, err
	}
	if !was.right { // only now: a passage may have led to them
		if err := fw.removeExcept(ctx, spec.Backend.OrDefault(), rules); err != nil {
			return changes, err
		}
	}
	if spec.ForwardsNeeded() && ctx.Err() == nil {
		change, err := ensureForwarding()
		if changes = append(changes, change...); err != nil {
			return changes, err
		}
	}
	if err := ctx.Err(); err != nil || !spec.Loopback || routesLocalnet(spec.Bridge) {
		return changes, err
	}
	// Only now that the rules stand, which keep guests off the host's loopback.
	if err := os.WriteFile(localnetFile(spec.Bridge), []byte("1"), 0); err != nil {
		return changes, explain(err, "lead the host's loopback to bridge %s", spec.Bridge)
	}
	return append(changes, network.Change{What: "sysctl net.ipv4.conf." + spec.Bridge + ".route_localnet", Old: "0", New: "1"}), nil
}

// localnetFile lets connections that the host makes to its own 127.0.0.1 be led to
// guests of a bridge (Documentation/networking/ip-sysctl.rst: route_localnet). It
// goes with the bridge.
func localnetFile(bridge string) string {
	return "/proc/sys/net/ipv4/conf/" + bridge + "/route_localnet"
}

func routesLocalnet(bridge string) bool {
	data, err := os.ReadFile(localnetFile(bridge))
	return err == nil && strings.TrimSpace(string(data)) == "1"
}

func presence(is bool) string {
	if is {
		return "different"
	}
	return ""
}

// bridge returns the network's bridge, nil if there is none, and an error if
// the name is somebody else's.
func (s *session) bridge(spec network.Spec) (netlink.Link, error) {
	l, err := s.link(spec.Bridge)
	if err != nil || l == nil {
		return nil, err
	}
	if !ownsBridge(l, spec.NetworkID) {
		return nil, foreign("interface " + mvm.Quote(spec.Bridge))
	}
	return l, nil
}

// ownsBridge tells our bridge by its alias, or, where we were killed before we
// could set one, by the address that it was made with.
func ownsBridge(l netlink.Link, networkID string) bool {
	if l.Type() != "bridge" {
		return false
	}
	if alias := l.Attrs().Alias; alias != "" {
		return alias == network.Alias(networkID)
	}
	return bytes.Equal(l.Attrs().HardwareAddr, network.BridgeMAC(networkID))
}

func (s *session) ensureBridge(l netlink.Link, spec network.Spec) ([]network.Change, error) {
	var changes []network.Change
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = spec.Bridge, network.BridgeMAC(spec.NetworkID)
		err := s.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		if err != nil && !errors.Is(err, unix.EEXIST) { // another process may have been quicker
			return nil, explain(err, "make bridge %s", spec.Bridge)
		}
		if l, err = s.bridge(spec); err != nil {
			return nil, err
		}
		if l == nil {
			return nil, explain(unix.ENODEV, "find bridge %s again", spec.Bridge)
		}
		changes = append(changes, network.Change{What: "bridge " + spec.Bridge, New: spec.Subnet.String()})
	}
	if l.Attrs().Alias == "" {
		if err := s.LinkSetAlias(l, network.Alias(spec.NetworkID)); err != nil {
			return changes, explain(err, "mark bridge %s", spec.Bridge)
		}
	}
	has, err := s.hasAddr(l, spec)
	if err != nil {
		return changes, err
	}
	if !has {
		disableIPv6(spec.Bridge)
		if err := s.AddrReplace(l, gatewayAddr(spec)); err != nil {
			return changes, explain(err, "give bridge %s the address %s", spec.Bridge, spec.Gateway)
		}
		changes = append(changes, network.Change{What: "address of " + spec.Bridge, New: gatewayPrefix(spec).String()})
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := s.LinkSetUp(l); err != nil {
			return changes, explain(err, "set bridge %s up", spec.Bridge)
		}
		changes = append(changes, network.Change{What: "state of " + spec.Bridge, Old: "down", New: "up"})
	}
	return changes, nil
}

func gatewayPrefix(spec network.Spec) netip.Prefix {
	return netip.PrefixFrom(spec.Gateway, spec.Subnet.Bits())
}

func gatewayAddr(spec network.Spec) *netlink.Addr {
	broadcast := network.Broadcast(spec.Subnet)
	return &netlink.Addr{
		IPNet:     &net.IPNet{IP: spec.Gateway.AsSlice(), Mask: net.CIDRMask(spec.Subnet.Bits(), 32)},
		Broadcast: broadcast.AsSlice(),
	}
}

func (s *session) hasAddr(l netlink.Link, spec network.Spec) (bool, error) {
	addrs, err := again(func() ([]netlink.Addr, error) { return s.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return false, explain(err, "list the addresses of %s", l.Attrs().Name)
	}
	for _, a := range addrs {
		if a.IPNet != nil && prefixOf(a.IPNet) == gatewayPrefix(spec) {
			return true, nil
		}
	}
	return false, nil
}

// disableIPv6 keeps the host's IPv6 stack off a device: networks are IPv4 only,
// and a guest must not reach the host's services by link-local addresses, which
// no rule of ours looks at. The file is missing where the kernel has no IPv6.
func disableIPv6(ifname string) {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+ifname+"/disable_ipv6", []byte("1"), 0)
}

func forwarding() (bool, error) {
	data, err := os.ReadFile(forwardingFile)
	if err != nil {
		return false, explain(err, "read net.ipv4.ip_forward")
	}
	return strings.TrimSpace(string(data)) != "0", nil
}

func ensureForwarding() ([]network.Change, error) {
	on, err := forwarding()
	if err != nil || on {
		return nil, err
	}
	if err := os.WriteFile(forwardingFile, []byte("1"), 0); err != nil {
		return nil, explain(err, "turn on net.ipv4.ip_forward")
	}
	return []network.Change{{What: network.ForwardingSysctl, Old: "0", New: "1"}}, nil
}

// RemoveNetwork implements network.Kernel. The bridge is set down first: while frames
// pass it, there are the rules that keep its guests in. Then both go at once, for the
// kernel waits for all readers (RCU) of a bridge, and of a table, and each takes it many
// milliseconds.
func (k *Kernel) RemoveNetwork(ctx context.Context, spec network.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	s, err := open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := s.LinkByName(spec.Bridge)
	var none netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &none) {
		return explain(err, "look up bridge %s", spec.Bridge)
	}
	gone := make(chan error, 1)
	if err == nil && l.Attrs().Name == spec.Bridge && ownsBridge(l, spec.NetworkID) {
		if err := s.LinkSetDown(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return explain(err, "set bridge %s down", spec.Bridge)
		}
		go func() { // on whichever thread: the socket is of this namespace
			err := s.LinkDel(l)
			if errors.Is(err, unix.ENODEV) {
				err = nil
			}
			gone <- explain(err, "remove bridge %s", spec.Bridge)
		}()
	} else {
		gone <- nil
	}
	err = k.removeRules(ctx, spec)
	return errors.Join(<-gone, err)
}

// removeRules removes the rules of a network, at the places of other programs too.
func (k *Kernel) removeRules(ctx context.Context, spec network.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fw, err := k.openFilters()
	if err != nil {
		return err
	}
	defer fw.close()
	if err := k.removePassages(ctx, fw, spec); err != nil {
		return err
	}
	return fw.remove(ctx, networkGroup(spec))
}

// Observe implements network.Kernel.
func (k *Kernel) Observe(ctx context.Context, spec network.Spec) (network.Observed, error) {
	var o network.Observed
	if err := spec.Validate(); err != nil {
		return o, err
	}
	s, err := open(ctx)
	if err != nil {
		return o, err
	}
	defer s.Close()
	l, err := s.LinkByName(spec.Bridge)
	var none netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &none) {
		return o, explain(err, "look up bridge %s", spec.Bridge)
	}
	if err == nil {
		if l.Attrs().Name != spec.Bridge || !ownsBridge(l, spec.NetworkID) {
			return network.Observed{Foreign: true}, nil
		}
		o.Exists, o.Up = true, l.Attrs().Flags&net.FlagUp != 0
		if o.Gateway, err = s.hasAddr(l, spec); err != nil {
			return o, err
		}
	}
	if o.Forwarding, err = forwarding(); err != nil {
		return o, err
	}
	fw, err := k.openFilters()
	if err != nil {
		return o, err
	}
	defer fw.close()
	rules, err := fw.read(ctx, spec.Backend, networkGroup(spec))
	if errors.Is(err, mvm.ErrPrivilege) {
		o.RulesUnknown = true
		return o, nil
	}
	if err != nil {
		return o, err
	}
	o.Rules = rules.rules
	o.Right = o.Active() && rules.right && (o.Forwarding || !spec.ForwardsNeeded()) &&
		(!spec.Loopback || routesLocalnet(spec.Bridge))
	if o.Passages, err = fw.passages(ctx, spec); err != nil {
		return o, err
	}
	o.Right = o.Right && !slices.ContainsFunc(o.Passages, func(p network.Passage) bool { return p.Ours && !p.Open })
	return o, nil
}
