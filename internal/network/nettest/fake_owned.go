package nettest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/mvmctl/mvm/internal/network"
)

// Owned lists the bridges and taps of ours, as the real kernel does.
func (f *Fake) Owned(ctx context.Context) ([]network.Owned, error) {
	end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var owned []network.Owned
	for _, name := range slices.Sorted(maps.Keys(f.links)) {
		if id, ours := network.AliasID(f.links[name].alias); ours {
			owned = append(owned, network.Owned{Name: name, ID: id, Bridge: f.links[name].kind == "bridge"})
		}
	}
	return owned, nil
}

// Taken lists the ports of the host that lead to VMs, as the real kernel does.
func (f *Fake) Taken(ctx context.Context) ([]network.Taken, error) {
	end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var taken []network.Taken
	for _, name := range slices.Sorted(maps.Keys(f.tables)) {
		id, _ := strings.CutPrefix(f.tables[name].owner, network.Tag(""))
		for _, r := range f.tables[name].rules {
			if _, dnat := network.DNATTo(r.Target); !dnat || r.ChainName != network.ChainPrerouting {
				continue
			}
			t := network.Taken{VMID: id, Publish: network.Publish{Protocol: r.Protocol, HostPort: r.DPort}}
			if addr, _, one := strings.Cut(r.Destination, "/"); one {
				t.HostAddr, _ = netip.ParseAddr(addr)
			}
			taken = append(taken, t)
		}
	}
	return taken, nil
}

// Dump tells all that there is, a line each, for comparing.
func (f *Fake) Dump() []string {
	end, _ := f.begin(context.Background())
	defer end()
	lines := []string{fmt.Sprint("forwarding ", f.forwarding)}
	for name, l := range f.links {
		lines = append(lines, fmt.Sprintf("link %s %+v", name, *l))
	}
	for name, t := range f.tables {
		lines = append(lines, fmt.Sprintf("table %s of %s", name, t.owner))
		for _, r := range t.rules {
			lines = append(lines, "  "+name+" "+network.Text(r))
		}
	}
	slices.Sort(lines)
	return lines
}
