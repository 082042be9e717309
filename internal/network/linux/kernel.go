// Package linux makes networks real on Linux: bridges, taps and addresses by
// rtnetlink, firewall rules by nftables' netlink, without child processes, or by
// iptables. It is the only package that imports netlink libraries, and it must not know the
// store, VMs or what a network is used for.
//
// Each network has an nftables table of its own ("ip mvm-default", named like
// the bridge), which is rendered whole and replaced in one transaction. Two
// processes that make two networks at once therefore never write the same
// object, and removing a network is removing its table. A packet passes the
// tables of all networks; a network's own table drops what must not reach it, so
// no table needs to know of another network.
//
// Each tap has a table of the netdev family, with one chain on the tap's
// ingress. Only packets of that one guest pass it, whereas rules in the bridge
// family would cost every packet a walk over all VMs.
//
// That is the backend of nftables. The one of iptables has the same rules in chains
// that iptables-restore writes, see iptables.
//
// A DROP policy in a table of somebody else (Docker's FORWARD chain) cannot be
// overruled from ours: an accept here only ends our own table. What is needed there
// goes to the place that the other program provides, see ensurePassages. Where that is a
// zone of firewalld's, it is asked on the system bus.
package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/run"
)

// Kernel implements network.Kernel for the network namespace of the thread that
// calls it. It holds nothing open between calls.
type Kernel struct {
	run run.Runner
	bus string // the address of the system bus
}

var _ network.Kernel = (*Kernel)(nil)

// New returns a Kernel. It touches nothing.
func New() *Kernel { return &Kernel{run: &run.Host{}, bus: systemBus} }

// session is one call's netlink socket.
type session struct {
	ctx context.Context
	*netlink.Handle
}

func open(ctx context.Context) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, explain(err, "open netlink")
	}
	return &session{ctx, h}, nil
}

// link returns the link with a name, nil if there is none.
func (s *session) link(name string) (netlink.Link, error) {
	l, err := s.LinkByName(name)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return nil, nil
	case err != nil:
		return nil, explain(err, "look up interface %s", name)
	case l.Attrs().Name != name: // the kernel finds a link by its alternative names too
		return nil, foreign("interface " + mvm.Quote(name))
	}
	return l, nil
}

// foreign is the refusal to take over what somebody else made.
func foreign(what string) error {
	return mvm.Errorf(mvm.ErrExists, "%s is there already and belongs to something else", what).
		WithHint("use another name, or remove it if nothing needs it (see 'ip -d link' and 'nft list tables')")
}

// explain gives an error of the kernel its kind and hint.
func explain(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	var known *mvm.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	what := fmt.Sprintf(format, args...)
	switch {
	case errors.Is(err, os.ErrPermission):
		return mvm.Errorf(mvm.ErrPrivilege, "%s: %w", what, err).WithHint("run with sudo")
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT):
		return mvm.Errorf(mvm.ErrUnsupported, "%s: %w", what, err).
			WithHint("the kernel has to provide bridge, tun and nf_tables; see 'mvm host status'")
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%s: %w", what, err).WithHint("see 'dmesg' for what the kernel says, then try again")
}

// again repeats a dump that changed while it was read.
func again[T any](dump func() (T, error)) (T, error) {
	var v T
	var err error
	for range 5 {
		if v, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return v, err
}

// HostRoutes implements network.Kernel.
func (k *Kernel) HostRoutes(ctx context.Context) ([]network.Route, error) {
	s, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	names, err := s.linkNames()
	if err != nil {
		return nil, err
	}
	routes, err := again(func() ([]netlink.Route, error) {
		return s.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, explain(err, "list routes")
	}
	var out []network.Route
	for _, r := range routes {
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Dst != nil {
			dst = prefixOf(r.Dst)
		}
		indexes := []int{r.LinkIndex}
		for _, hop := range r.MultiPath {
			indexes = append(indexes, hop.LinkIndex)
		}
		for i, index := range indexes {
			if len(indexes) > 1 && i == 0 { // a multipath route names its interfaces in the hops only
				continue
			}
			out = append(out, network.Route{Dst: dst, Interface: names[index], Metric: r.Priority})
		}
	}
	return out, nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}

// HostAddresses implements network.Kernel.
func (k *Kernel) HostAddresses(ctx context.Context) ([]network.Address, error) {
	s, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	names, err := s.linkNames()
	if err != nil {
		return nil, err
	}
	addrs, err := again(func() ([]netlink.Addr, error) { return s.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, explain(err, "list addresses")
	}
	var out []network.Address
	for _, a := range addrs {
		if a.IPNet != nil {
			out = append(out, network.Address{Prefix: prefixOf(a.IPNet), Interface: names[a.LinkIndex]})
		}
	}
	return out, nil
}

// linkNames returns the names of all interfaces by their index.
func (s *session) linkNames() (map[int]string, error) {
	links, err := again(s.LinkList)
	if err != nil {
		return nil, explain(err, "list interfaces")
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

// allLinks lists the interfaces of the namespace.
func allLinks(ctx context.Context) ([]netlink.Link, error) {
	s, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	links, err := again(s.LinkList)
	return links, explain(err, "list interfaces")
}

// Interfaces implements network.Kernel.
func (k *Kernel) Interfaces(ctx context.Context) ([]string, error) {
	links, err := allLinks(ctx)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(links))
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names, nil
}
