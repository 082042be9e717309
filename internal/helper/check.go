package helper

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// What one user may have, so that a user cannot fill the kernel.
const (
	maxNetworks = 64
	maxTaps     = 1024
	maxPublish  = 128
	maxUplinks  = 16
	maxEgress   = 256
)

// firstPort is the first port that programs of ordinary users may listen on
// (Documentation/networking/ip-sysctl.rst: ip_unprivileged_port_start).
const firstPort = 1024

// Servers of other users' cloud-init listen on these ports of their gateways: who
// led them elsewhere for all addresses would set up other people's VMs.
const firstNoCloud, lastNoCloud = 8000, 9000

// Host is what the kernel tells beyond network.Kernel.
type Host interface {
	network.Kernel
	Owned(ctx context.Context) ([]network.Owned, error)
	Taken(ctx context.Context) ([]network.Taken, error)
}

func refuse(format string, args ...any) *mvm.Error {
	return mvm.Errorf(mvm.ErrPrivilege, format, args...).WithHint("ask an administrator to do it as root")
}

func invalid(format string, args ...any) *mvm.Error {
	return mvm.Errorf(mvm.ErrInvalid, format, args...)
}

// owns refuses ids that are not the caller's.
func (s *Server) owns(what, id string) error {
	if uid, ok := network.OwnerOf(id); !ok || uid != s.UID {
		return refuse("%s %s is not yours", what, mvm.Quote(clip(id)))
	}
	return nil
}

// network checks what says which network is meant.
func (s *Server) network(n *Network) (network.Spec, error) {
	if n == nil {
		return network.Spec{}, invalid("the request names no network")
	}
	spec := n.spec()
	if err := s.owns("network", n.ID); err != nil {
		return spec, err
	}
	if err := mvm.ValidateName("network", n.Name); err != nil {
		return spec, err
	}
	if want := network.MemberBridge(s.UID, n.Name); n.Bridge != want {
		return spec, refuse("the bridge of your network %s is called %s, not %s", mvm.Quote(n.Name), want, mvm.Quote(clip(n.Bridge)))
	}
	if len(n.Uplinks) > maxUplinks {
		return spec, invalid("a network has at most %d uplinks", maxUplinks)
	}
	subnet, _, err := network.ValidateSubnet(n.Subnet.String())
	if err != nil {
		return spec, err
	}
	if _, err := network.Gateway(subnet, n.Gateway.String()); err != nil {
		return spec, err
	}
	return spec, spec.Validate()
}

// newNetwork checks what a network does to the host besides.
func (s *Server) newNetwork(ctx context.Context, spec network.Spec) error {
	if network.IsPublic(spec.Subnet) {
		return refuse("subnet %s hides addresses that are somebody's on the internet from all users of this host", spec.Subnet)
	}
	routes, err := s.Host.HostRoutes(ctx)
	if err != nil {
		return err
	}
	addrs, err := s.Host.HostAddresses(ctx)
	if err != nil {
		return err
	}
	if c := network.HostClash(spec.Subnet, routes, addrs, spec.Bridge); c != nil {
		return mvm.Errorf(mvm.ErrExists, "subnet %s overlaps %s, which this host has on %s", spec.Subnet, c.Prefix, firstOf(c.Interface, "a route")).
			WithHint("leave the subnet out to get a free one")
	}
	for _, a := range addrs { // one bridge, one subnet
		if a.Interface == spec.Bridge && (a.Prefix.Addr() != spec.Gateway || a.Prefix.Bits() != spec.Subnet.Bits()) {
			return mvm.Errorf(mvm.ErrConflict, "bridge %s has the address %s already", spec.Bridge, a.Prefix).WithHint("remove the network and create it anew")
		}
	}
	if err := s.uplinks(ctx, spec); err != nil {
		return err
	}
	owned, err := s.Host.Owned(ctx)
	if err != nil {
		return err
	}
	return s.room(owned, spec.Bridge, true, maxNetworks, "networks")
}

// uplinks refuses ways out that lead to other people's guests.
func (s *Server) uplinks(ctx context.Context, spec network.Spec) error {
	if len(spec.NATGateways) == 0 {
		return nil
	}
	interfaces, err := s.Host.Interfaces(ctx)
	if err != nil {
		return err
	}
	for _, u := range spec.NATGateways {
		if u == "lo" || strings.HasPrefix(u, network.BridgePrefix) {
			return invalid("%s leads to no other network", mvm.Quote(clip(u)))
		}
	}
	return network.CheckUplinks(spec.NATGateways, interfaces)
}

// room refuses a new object of a caller who has too many.
func (s *Server) room(owned []network.Owned, name string, bridge bool, most int, what string) error {
	n := 0
	for _, o := range owned {
		if uid, ok := network.OwnerOf(o.ID); !ok || uid != s.UID || o.Bridge != bridge {
			continue
		}
		if o.Name == name {
			return nil
		}
		n++
	}
	if n >= most {
		return mvm.Errorf(mvm.ErrUnavailable, "you have %d %s, and may have no more", n, what).WithHint("remove some")
	}
	return nil
}

// tap checks what says which tap is meant.
func (s *Server) tap(t *Tap) (network.TapSpec, error) {
	if t == nil {
		return network.TapSpec{}, invalid("the request names no tap")
	}
	spec, err := t.spec(s.UID)
	if err != nil {
		return spec, err
	}
	if err := s.owns("VM", t.VMID); err != nil {
		return spec, err
	}
	if want := network.TapName(t.VMID); t.Name != want {
		return spec, refuse("the tap of your VM %s is called %s, not %s", t.VMID, want, mvm.Quote(clip(t.Name)))
	}
	return spec, nil
}

// newTap checks what a tap, and the rules of its VM, are about.
func (s *Server) newTap(ctx context.Context, t network.TapSpec) error {
	if err := t.Validate(); err != nil {
		return err
	}
	if err := mvm.ValidateName("VM", t.VMName); err != nil {
		return err
	}
	if t.Egress != nil && len(t.Egress.Networks) > maxEgress {
		return refuse("a VM of yours may have a list of %d networks at most", maxEgress)
	}
	if err := s.owns("network", t.NetworkID); err != nil {
		return err
	}
	owned, err := s.Host.Owned(ctx)
	if err != nil {
		return err
	}
	if err := s.room(owned, t.Name, false, maxTaps, "VMs with a network"); err != nil {
		return err
	}
	addrs, err := s.Host.HostAddresses(ctx)
	if err != nil {
		return err
	}
	if err := within(owned, addrs, t.Bridge, t.NetworkID, t.IP); err != nil {
		return err
	}
	return s.ports(ctx, t, owned, addrs)
}

// within refuses a bridge that is not the network's, and an address that no guest on
// it can have.
func within(owned []network.Owned, addrs []network.Address, bridge, networkID string, ip netip.Addr) error {
	if !slices.Contains(owned, network.Owned{Name: bridge, ID: networkID, Bridge: true}) {
		return mvm.Errorf(mvm.ErrNotFound, "your network has no bridge %s", mvm.Quote(clip(bridge))).WithHint("run 'mvm network sync' to set the networks up again")
	}
	for _, a := range addrs {
		if a.Interface == bridge && network.CheckIP(a.Prefix.Masked(), a.Prefix.Addr(), nil, ip) == nil {
			return nil
		}
	}
	return refuse("no guest on bridge %s can have the address %s", bridge, ip)
}

// ports refuses to lead ports of the host to a VM that are not for everybody to take.
func (s *Server) ports(ctx context.Context, t network.TapSpec, owned []network.Owned, addrs []network.Address) error {
	if len(t.Publish) == 0 {
		return nil
	}
	if len(t.Publish) > maxPublish {
		return invalid("a VM has at most %d published ports", maxPublish)
	}
	taken, err := s.Host.Taken(ctx)
	if err != nil {
		return err
	}
	for _, p := range t.Publish {
		switch {
		case p.HostPort < firstPort:
			return refuse("port %d of the host is root's: ports from %d on are for everybody", p.HostPort, firstPort)
		case !p.HostAddr.IsValid() && p.HostPort >= firstNoCloud && p.HostPort <= lastNoCloud:
			return refuse("port %d on all addresses of the host is kept for cloud-init of other users' VMs", p.HostPort).
				WithHint("name the address, such as 127.0.0.1:%d:%d, or take a port outside %d to %d", p.HostPort, p.GuestPort, firstNoCloud, lastNoCloud)
		case p.HostAddr.IsValid() && !p.HostAddr.IsLoopback() && !hostHas(p.HostAddr, owned, addrs):
			return refuse("%s is no address of this host to publish on", p.HostAddr)
		}
		for _, other := range taken {
			if other.VMID != t.VMID && other.Overlaps(p) {
				return mvm.Errorf(mvm.ErrExists, "%s port %d of the host leads to another VM", p.Protocol, p.HostPort).WithHint("publish another port")
			}
		}
		if owner, used := s.Taken(p.Protocol, p.HostAddr, p.HostPort); used {
			return mvm.Errorf(mvm.ErrExists, "%s port %d of the host is used by %s", p.Protocol, p.HostPort, owner).WithHint("publish another port, or end what listens there")
		}
	}
	return nil
}

// hostHas reports whether an address is the host's own, and not on a bridge for guests.
func hostHas(addr netip.Addr, owned []network.Owned, addrs []network.Address) bool {
	return slices.ContainsFunc(addrs, func(a network.Address) bool {
		return a.Prefix.Addr() == addr && !slices.ContainsFunc(owned, func(o network.Owned) bool { return o.Name == a.Interface })
	})
}

// noCloud checks what a server of cloud-init's is about.
func (s *Server) noCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.Validate(); err != nil {
		return err
	}
	if n.Port < firstPort {
		return refuse("port %d is root's: a server of yours listens on one from %d on", n.Port, firstPort)
	}
	owned, err := s.Host.Owned(ctx)
	if err != nil {
		return err
	}
	addrs, err := s.Host.HostAddresses(ctx)
	if err != nil {
		return err
	}
	for _, o := range owned {
		if o.Name != n.Bridge || !o.Bridge || s.owns("network", o.ID) != nil {
			continue
		}
		gateway := slices.ContainsFunc(addrs, func(a network.Address) bool { return a.Interface == n.Bridge && a.Prefix.Addr() == n.Gateway })
		if !gateway {
			return refuse("%s is not the gateway of bridge %s", n.Gateway, n.Bridge)
		}
		return within(owned, addrs, n.Bridge, o.ID, n.IP)
	}
	return refuse("bridge %s is not yours", mvm.Quote(clip(n.Bridge)))
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
