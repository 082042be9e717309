package api

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/store"
)

const publishHint = "write [ADDRESS:]PORT:GUESTPORT[/tcp|/udp], such as 8080:80 or 127.0.0.1:5353:53/udp"

// parsePublish reads [hostip:]port:port[/proto].
func parsePublish(s string) (network.Publish, error) {
	invalid := func(why string) (network.Publish, error) {
		return network.Publish{}, mvm.Errorf(mvm.ErrInvalid, "the published port %s %s", mvm.Quote(s), why).WithHint(publishHint)
	}
	ports, proto, given := strings.Cut(s, "/")
	if !given {
		proto = "tcp"
	}
	p := network.Publish{Protocol: strings.ToLower(proto)}
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return invalid("has an unknown protocol")
	}
	parts := strings.Split(ports, ":")
	switch {
	case strings.Contains(ports, "["), len(parts) > 3:
		return invalid("is IPv6, which networks do not have yet, or has too many parts")
	case len(parts) < 2:
		return invalid("does not say which port of the guest is meant")
	case len(parts) == 3:
		addr, err := netip.ParseAddr(parts[0])
		if err != nil || !addr.Is4() {
			return invalid("has no IPv4 address of this host before its ports")
		}
		if !addr.IsUnspecified() {
			p.HostAddr = addr
		}
		parts = parts[1:]
	}
	for i, to := range []*int{&p.HostPort, &p.GuestPort} {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 1 || n > 65535 {
			return invalid("has a port that is not a number from 1 to 65535")
		}
		*to = n
	}
	return p, nil
}

// publishText is how a published port is kept and shown.
func publishText(p network.Publish) string {
	text := strconv.Itoa(p.HostPort) + ":" + strconv.Itoa(p.GuestPort) + "/" + p.Protocol
	if p.HostAddr.IsValid() {
		text = p.HostAddr.String() + ":" + text
	}
	return text
}

// portsOf returns the ports that a VM publishes. What was stored was checked.
func portsOf(vm *mvm.VMInstanceItem) []network.Publish {
	var ports []network.Publish
	for _, s := range vm.Options.Publish {
		if p, err := parsePublish(s); err == nil {
			ports = append(ports, p)
		}
	}
	return ports
}

// validatePublish refuses what can never work.
func (in VMCreateInput) validatePublish() error {
	var seen []network.Publish
	for _, s := range in.Publish {
		p, err := parsePublish(s)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(seen, p.Overlaps) {
			return mvm.Errorf(mvm.ErrInvalid, "%s port %d of the host is published twice", p.Protocol, p.HostPort).WithHint("leave one out")
		}
		seen = append(seen, p)
	}
	return nil
}

// resolvePublish sees that the ports are free on this host, and notes them.
func (p *vmPlan) resolvePublish(ctx context.Context, ports []string) error {
	p.item.Options.Publish = nil
	for _, s := range ports {
		port, err := parsePublish(s)
		if err != nil {
			return err
		}
		p.item.Options.Publish = append(p.item.Options.Publish, publishText(port))
	}
	return p.c.checkPorts(ctx, p.item)
}

// checkPorts refuses ports that programs of the host listen on, and addresses that
// it does not have.
func (c *core) checkPorts(ctx context.Context, vm *mvm.VMInstanceItem) error {
	ports := portsOf(vm)
	if len(ports) == 0 {
		return nil
	}
	addrs, err := c.net.HostAddresses(ctx)
	if err != nil {
		return err
	}
	for _, p := range ports {
		has := func(a network.Address) bool { return a.Prefix.Addr() == p.HostAddr }
		if p.HostAddr.IsValid() && !p.HostAddr.IsLoopback() && !slices.ContainsFunc(addrs, has) {
			return mvm.Errorf(mvm.ErrNotFound, "this host has no address %s to publish on", p.HostAddr).WithHint("see 'ip -4 address', or leave the address out")
		}
		if err := c.listens(p); err != nil {
			return err
		}
	}
	return c.checkOthersPorts(ctx, ports)
}

// checkOthersPorts refuses ports that lead to VMs of others: those of our own are in
// the store. For members of the group the helper does so.
func (c *core) checkOthersPorts(ctx context.Context, ports []network.Publish) error {
	if !c.isRoot() {
		return nil
	}
	taken, err := c.taken(ctx)
	if err != nil {
		return err
	}
	for _, t := range taken {
		i := slices.IndexFunc(ports, t.Overlaps)
		if i < 0 {
			continue
		}
		if _, err := c.st.GetVM(ctx, t.VMID); err == nil {
			continue
		} else if mvm.KindOf(err) != mvm.ErrNotFound {
			return err
		}
		return mvm.Errorf(mvm.ErrExists, "%s port %d of the host leads to another user's VM", ports[i].Protocol, ports[i].HostPort).
			WithHint("publish another port; 'nft list ruleset' has the rule, with the VM's id %s", t.VMID)
	}
	return nil
}

// portTaken says who listens on a port of the host.
func portTaken(p network.Publish) error {
	owner, taken := host.PortTaken(p.Protocol, p.HostAddr, p.HostPort)
	if !taken {
		return nil
	}
	return mvm.Errorf(mvm.ErrExists, "%s port %d of the host is used by %s", p.Protocol, p.HostPort, owner).
		WithHint("publish another port, or end what listens there")
}

// reservePorts claims the ports of the host for the VM, for as long as it exists.
func (p *vmPlan) reservePorts(ctx context.Context, tx *store.Tx) error {
	for _, port := range portsOf(p.item) {
		f := &store.Forward{VMID: p.item.ID, Protocol: port.Protocol, HostPort: port.HostPort, GuestPort: port.GuestPort}
		if port.HostAddr.IsValid() {
			f.HostAddr = port.HostAddr.String()
		}
		if err := tx.InsertForward(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// networkSpecFor is networkSpec for a network that has these VMs on it.
func networkSpecFor(n *mvm.NetworkItem, vms ...*mvm.VMInstanceItem) network.Spec {
	spec := networkSpec(n)
	for _, vm := range vms {
		for _, p := range portsOf(vm) {
			if vm.NetworkID == n.ID {
				spec.Published = true
				spec.Loopback = spec.Loopback || !p.HostAddr.IsValid() || p.HostAddr.IsLoopback()
			}
		}
	}
	return spec
}
