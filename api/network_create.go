package api

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// NetworkCreateInput is a network to make.
type NetworkCreateInput struct {
	Name        string
	Subnet      string   // "" takes a free one
	IPv4Gateway string   // the host's address in it; "" takes the first
	NATEnabled  *bool    // nil takes the setting defaults.network nat_enabled
	DNSEnabled  *bool    // the gateway answers DNS; nil takes the setting defaults.network dns_enabled
	NATGateways []string // uplinks that guests leave by; none follows the host's default route
	SetDefault  bool

	// AllowPublicSubnet says that hiding a part of the internet from the guests
	// and the host is meant. Without it such a subnet is an *mvm.NeedsInteraction.
	AllowPublicSubnet bool
}

// PublicSubnetFlag is the flag that says AllowPublicSubnet. It ends the command of
// the NeedsInteraction that asks for it.
const PublicSubnetFlag = "--allow-public-subnet"

// Create makes a network and brings it up. A failure or a crash leaves nothing
// behind but IPv4 forwarding, which others may rely on by then.
func (o *NetworkOperation) Create(ctx context.Context, in NetworkCreateInput, _ ...Option) (*mvm.NetworkItem, error) {
	c := o.core
	if err := mvm.ValidateName("network", in.Name); err != nil {
		return nil, err
	}
	item, err := c.createNetwork(ctx, in)
	if err != nil {
		return nil, mvm.Wrap(err, "create network", in.Name)
	}
	return item, nil
}

func (c *core) createNetwork(ctx context.Context, in NetworkCreateInput) (*mvm.NetworkItem, error) {
	subnet, err := c.checkSubnet(in)
	if err != nil {
		return nil, err
	}
	if err := c.requireRoot("creating a network"); err != nil {
		return nil, err
	}
	if in.DNSEnabled != nil && *in.DNSEnabled {
		if err := c.mayServeDNS(); err != nil {
			return nil, err
		}
	}
	st, set, err := c.openSet(ctx)
	if err != nil {
		return nil, err
	}
	nat := or(in.NATEnabled, set.flag("defaults.network", "nat_enabled"))
	if err := c.checkUplinks(ctx, in, nat); err != nil {
		return nil, err
	}
	plan := &networkPlan{c: c, in: in, set: set, subnet: subnet, item: &mvm.NetworkItem{
		ID: newID(), Name: in.Name, Bridge: c.bridgeName(in.Name), NATEnabled: nat, DNSEnabled: or(in.DNSEnabled, c.dnsByDefault(set)), CreatedAt: now(), UpdatedAt: now(),
		NATGateways: optional(strings.Join(in.NATGateways, ",")),
	}}
	if plan.routes, plan.addrs, err = c.hostNetworks(ctx); err != nil {
		return nil, err
	}
	err = c.journal.Run(ctx, op.Op{
		Kind: opNetworkCreate, Subject: in.Name, SubjectID: plan.item.ID,
		Reserve: func(tx *store.Tx) error { return plan.reserve(ctx, tx) },
		Plan:    func() ([]op.Step, error) { return []op.Step{&bridgeStep{c: c, Spec: networkSpec(plan.item)}}, nil },
		Commit:  func(tx *store.Tx) error { return plan.commit(ctx, tx) },
	})
	if err != nil {
		return nil, err
	}
	seen, err := c.observeNetwork(ctx, st, plan.item)
	c.warnOfPassages(plan.item, seen)
	if in.DNSEnabled == nil {
		c.tellOfNoDNS(plan.item, set)
	}
	return plan.item, err
}

// checkSubnet looks at what was asked for before anything is touched.
func (c *core) checkSubnet(in NetworkCreateInput) (netip.Prefix, error) {
	if in.Subnet == "" {
		if in.IPv4Gateway != "" {
			return netip.Prefix{}, mvm.Errorf(mvm.ErrInvalid, "a gateway was given, but no subnet that it is in").WithHint("give the subnet too, or leave both out to get a free one")
		}
		return netip.Prefix{}, nil
	}
	subnet, warnings, err := network.ValidateSubnet(in.Subnet)
	if err != nil {
		return subnet, err
	}
	if _, err := network.Gateway(subnet, in.IPv4Gateway); err != nil {
		return subnet, err
	}
	for _, w := range warnings {
		if network.IsPublic(subnet) && !in.AllowPublicSubnet {
			return subnet, &mvm.NeedsInteraction{What: w, Command: in.command(PublicSubnetFlag), Consent: true}
		}
		c.notice(w)
	}
	return subnet, nil
}

// command is the command line for an input.
func (in NetworkCreateInput) command(more ...string) []string {
	cmd := []string{"mvm", "network", "create", in.Name, "--subnet", in.Subnet}
	if in.IPv4Gateway != "" {
		cmd = append(cmd, "--ipv4-gateway", in.IPv4Gateway)
	}
	if in.NATEnabled != nil && !*in.NATEnabled {
		cmd = append(cmd, "--no-nat")
	}
	if in.DNSEnabled != nil && !*in.DNSEnabled {
		cmd = append(cmd, "--no-dns")
	}
	if len(in.NATGateways) > 0 {
		cmd = append(cmd, "--nat-gateways", strings.Join(in.NATGateways, ","))
	}
	if in.SetDefault {
		cmd = append(cmd, "--default")
	}
	return append(cmd, more...)
}

// checkUplinks refuses uplinks that nobody can leave by.
func (c *core) checkUplinks(ctx context.Context, in NetworkCreateInput, nat bool) error {
	if len(in.NATGateways) == 0 {
		return nil
	}
	if !nat {
		return mvm.Errorf(mvm.ErrInvalid, "uplinks are named, but the network has no NAT to leave by").WithHint("leave out the uplinks or the absence of NAT")
	}
	interfaces, err := c.net.Interfaces(ctx)
	if err != nil {
		return err
	}
	for _, u := range in.NATGateways {
		if u == "lo" || strings.HasPrefix(u, network.BridgePrefix) {
			return mvm.Errorf(mvm.ErrInvalid, "%s leads to no other network", mvm.Quote(u)).WithHint("name an interface of this host that does, or leave the uplinks out to follow the default route")
		}
	}
	return network.CheckUplinks(in.NATGateways, interfaces)
}

func (c *core) hostNetworks(ctx context.Context) ([]network.Route, []network.Address, error) {
	routes, err := c.net.HostRoutes(ctx)
	if err != nil {
		return nil, nil, err
	}
	addrs, err := c.net.HostAddresses(ctx)
	return routes, addrs, err
}

// networkPlan is a network that is to be made.
type networkPlan struct {
	c      *core
	in     NetworkCreateInput
	set    settings
	item   *mvm.NetworkItem
	subnet netip.Prefix // as asked for; invalid for a free one
	routes []network.Route
	addrs  []network.Address
}

// reserve chooses the subnet and claims it with the name, in one transaction.
func (p *networkPlan) reserve(ctx context.Context, tx *store.Tx) error {
	nets, err := tx.ListNetworks(ctx)
	if err != nil {
		return err
	}
	for _, n := range nets {
		if n.Name == p.item.Name {
			return mvm.Errorf(mvm.ErrExists, "it exists already, with subnet %s", n.Subnet).WithHint("choose another name; 'mvm network ls' shows those in use")
		}
	}
	// A bridge of this very name is an earlier life of this network, not a clash.
	subnet := p.subnet
	if subnet.IsValid() {
		if err := hostClash(subnet, nets, p.routes, p.addrs); err != nil {
			return err
		}
	} else {
		preferred, _, err := network.ValidateSubnet(p.set.str("defaults.network", "subnet"))
		if err != nil {
			return err
		}
		if subnet, err = network.FreeSubnet(preferred, takenSubnets(nets, p.routes, p.addrs, p.item.Bridge)); err != nil {
			return err
		}
	}
	gateway, err := network.Gateway(subnet, p.in.IPv4Gateway)
	if err != nil {
		return err
	}
	p.item.Subnet, p.item.IPv4Gateway = subnet.String(), gateway.String()
	return tx.InsertNetwork(ctx, p.item)
}

// commit makes the network one that VMs can be put on.
func (p *networkPlan) commit(ctx context.Context, tx *store.Tx) error {
	p.item.IsPresent, p.item.BridgeActive = true, true
	if err := tx.UpdateNetwork(ctx, p.item); err != nil {
		return err
	}
	if err := recordRules(ctx, tx, networkSpec(p.item)); err != nil {
		return err
	}
	if p.in.SetDefault {
		p.item.IsDefault = true
		return tx.SetDefaultNetwork(ctx, p.item.ID)
	}
	return nil
}

// hostClash refuses a subnet that would hide what the host reaches already. What
// overlaps another network of ours is told by the store.
func hostClash(subnet netip.Prefix, nets []*mvm.NetworkItem, routes []network.Route, addrs []network.Address) error {
	var ours []string
	for _, n := range nets {
		ours = append(ours, n.Bridge)
	}
	clash := network.HostClash(subnet, routes, addrs, ours...)
	if clash == nil {
		return nil
	}
	by := "by a route that leads nowhere"
	if clash.Interface != "" {
		by = "by its interface " + clash.Interface
	}
	e := mvm.Errorf(mvm.ErrExists, "the subnet %s overlaps %s, which this host has %s", subnet, clash.Prefix, by)
	if free, err := network.FreeSubnet(netip.Prefix{}, takenSubnets(nets, routes, addrs)); err == nil {
		return e.WithHint("choose another; %s is free", free)
	}
	return e.WithHint("choose another")
}

// takenSubnets are the subnets that a new network has to keep clear of.
func takenSubnets(nets []*mvm.NetworkItem, routes []network.Route, addrs []network.Address, except ...string) []netip.Prefix {
	taken := network.Destinations(routes, except...)
	for _, a := range addrs {
		if !slices.Contains(except, a.Interface) {
			taken = append(taken, a.Prefix.Masked())
		}
	}
	for _, n := range nets {
		if p, err := netip.ParsePrefix(n.Subnet); err == nil {
			taken = append(taken, p)
		}
	}
	return taken
}
