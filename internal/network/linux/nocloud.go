package linux

import (
	"context"

	"github.com/google/nftables"

	"github.com/mvmctl/mvm/internal/network"
)

// noCloudTable renders the table of one VM's NoCloud server. It is apart from the
// network's: two VMs that start at once never write the same object.
func noCloudTable(n network.NoCloudSpec) table {
	accept := nftables.ChainPolicyAccept
	c := chain{Chain: nftables.Chain{
		Name: network.ChainInput, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &accept,
	}}
	if n.IP.Is4() { // removing needs the name and the tag only
		for _, r := range network.NoCloudRules(n) {
			c.rules = append(c.rules, encode(r))
		}
	}
	return table{family: nftables.TableFamilyIPv4, name: n.Table(), tag: network.Tag(n.VMID) + ":", chains: []chain{c}}
}

// AllowNoCloud implements network.Kernel.
func (k *Kernel) AllowNoCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.Validate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	fw, err := openFirewall()
	if err != nil {
		return err
	}
	defer fw.close()
	was, err := fw.read(noCloudTable(n))
	if err != nil {
		return err
	}
	if was.foreign {
		return foreign("nftables table", "ip "+n.Table())
	}
	return fw.put(noCloudTable(n), was)
}

// RemoveNoCloud implements network.Kernel.
func (k *Kernel) RemoveNoCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.ValidateRemoval(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return removeTable(noCloudTable(n))
}
