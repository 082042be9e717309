package linux

import (
	"context"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/mvmctl/mvm/internal/network"
)

// Owned lists the bridges and taps that carry an alias of ours, whoever made them.
func (k *Kernel) Owned(ctx context.Context) ([]network.Owned, error) {
	s, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	links, err := again(s.LinkList)
	if err != nil {
		return nil, explain(err, "list interfaces")
	}
	var owned []network.Owned
	for _, l := range links {
		id, ours := network.AliasID(l.Attrs().Alias)
		tun, isTun := l.(*netlink.Tuntap)
		isTap := isTun && tun.Mode == netlink.TUNTAP_MODE_TAP
		if ours && (isTap || l.Type() == "bridge") {
			owned = append(owned, network.Owned{Name: l.Attrs().Name, ID: id, Bridge: !isTap})
		}
	}
	return owned, nil
}

// Taken lists the ports of the host that lead to VMs, whoever made the rules.
func (k *Kernel) Taken(ctx context.Context) ([]network.Taken, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fw, err := openFirewall()
	if err != nil {
		return nil, err
	}
	defer fw.close()
	chains, err := fw.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, explain(err, "read nftables chains")
	}
	var taken []network.Taken
	for _, c := range chains {
		if c.Name != network.ChainPrerouting {
			continue
		}
		rules, err := fw.GetRules(c.Table, c)
		if err != nil {
			return nil, explain(err, "read nftables rules of table %s", c.Table.Name)
		}
		for _, nr := range rules {
			tag, ours := strings.CutPrefix(comment(nr), network.Tag(""))
			id, _, _ := strings.Cut(tag, ":")
			r := decode(nr, owner{id: id})
			if _, dnat := network.DNATTo(r.Target); !ours || !dnat || r.DPort == 0 {
				continue
			}
			t := network.Taken{VMID: id, Publish: network.Publish{Protocol: r.Protocol, HostPort: r.DPort}}
			if addr, _, one := strings.Cut(r.Destination, "/"); one {
				t.HostAddr, _ = netip.ParseAddr(addr) // else every address, which is the wider claim
			}
			taken = append(taken, t)
		}
	}
	return taken, nil
}
