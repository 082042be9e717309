package linux

import (
	"context"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/run"
)

// Owned lists the bridges and taps that carry an alias of ours, whoever made them.
func (k *Kernel) Owned(ctx context.Context) ([]network.Owned, error) {
	links, err := allLinks(ctx)
	if err != nil {
		return nil, err
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

// Taken lists the ports of the host that lead to VMs, whoever made the rules, in
// either backend.
func (k *Kernel) Taken(ctx context.Context) ([]network.Taken, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fw, err := openFirewall()
	if err != nil {
		return nil, err
	}
	defer fw.close()
	taken, err := fw.taken()
	if err != nil {
		return nil, err
	}
	x := iptables{fw: fw, run: k.run}
	if _, err := run.Look(x.program("-save")); err != nil {
		return taken, nil // without iptables there are none of its rules
	}
	tables, err := x.save(ctx)
	if err != nil {
		return nil, err
	}
	nat := tables[network.TableOf(network.ChainPrerouting)]
	if nat == nil {
		return taken, nil
	}
	for name, lines := range nat.rules {
		if !strings.HasPrefix(name, ownPrefix[network.ChainPrerouting]) {
			continue
		}
		for _, line := range lines {
			for _, r := range xtDecode(network.ChainPrerouting, [][]string{line}, owner{id: idOfTag(xtParse(line).comment)}) {
				taken = appendTaken(taken, r)
			}
		}
	}
	return taken, nil
}

// taken are the ports in tables of nftables.
func (f *firewall) taken() ([]network.Taken, error) {
	chains, err := f.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, explain(err, "read nftables chains")
	}
	var taken []network.Taken
	for _, c := range chains {
		if c.Name != network.ChainPrerouting {
			continue
		}
		rules, err := f.GetRules(c.Table, c)
		if err != nil {
			return nil, explain(err, "read nftables rules of table %s", c.Table.Name)
		}
		for _, nr := range rules {
			taken = appendTaken(taken, decode(nr, owner{id: idOfTag(comment(nr))}))
		}
	}
	return taken, nil
}

// idOfTag returns the id in the comment of a rule of ours, "" in that of another.
func idOfTag(tag string) string {
	rest, ours := strings.CutPrefix(tag, network.Tag(""))
	id, _, _ := strings.Cut(rest, ":")
	if !ours {
		return ""
	}
	return id
}

// appendTaken adds the port that a rule leads to a VM, if it does.
func appendTaken(taken []network.Taken, r mvm.FirewallRule) []network.Taken {
	id := ""
	if r.CommentTag != nil {
		id = idOfTag(*r.CommentTag)
	}
	if _, dnat := network.DNATTo(r.Target); !dnat || id == "" || r.DPort == 0 {
		return taken
	}
	t := network.Taken{VMID: id, Publish: network.Publish{Protocol: r.Protocol, HostPort: r.DPort}}
	if addr, _, one := strings.Cut(r.Destination, "/"); one {
		t.HostAddr, _ = netip.ParseAddr(addr) // else every address, which is the wider claim
	}
	return append(taken, t)
}
