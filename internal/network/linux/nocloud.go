package linux

import (
	"context"

	"github.com/google/nftables"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// noCloudTable renders the table of one VM's NoCloud server. It is apart from the
// network's: two VMs that start at once never write the same object.
func noCloudTable(n network.NoCloudSpec) table {
	var rules []mvm.FirewallRule
	if n.IP.Is4() { // removing needs the name and the tag only
		rules = network.NoCloudRules(n)
	}
	t := ruleTable(n.Table(), n.VMID, rules)
	for i := range t.chains {
		t.chains[i].Priority = nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 1) // before the network's
	}
	return t
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
	return removeTables(noCloudTable(n))
}
