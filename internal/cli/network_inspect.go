package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newNetworkInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NETWORK...",
		Short: "Show all about networks",
		Long: `Show networks with their leases, firewall rules and VMs. With --json one network
gives an object, several give an array.`,
		Example:           "  mvm network inspect default --json",
		Args:              needs(1, -1, "a network"),
		ValidArgsFunction: a.completeNetworks(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Network.Inspect", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, any, error) {
			n, err := m.Network.Inspect(ctx, api.NetworkInput{Identifiers: []string{id}})
			if err != nil {
				return "", nil, err
			}
			if a.out.JSON {
				return "", n, nil
			}
			return "Network: " + n.Network.Name, networkView(n), nil
		})
	})
}

// networkView is what people see of a network: a line for each lease and rule.
func networkView(n *api.NetworkInspect) any {
	type view struct {
		Network *mvm.NetworkItem `json:"network"`
		Leases  []string         `json:"leases"`
		VMs     []string         `json:"vms"`
		Rules   []string         `json:"rules"`
	}
	item := *n.Network
	item.Leases, item.IPTablesRules = nil, nil
	v := view{Network: &item, VMs: n.VMs}
	for _, l := range n.Leases {
		line := l.IPv4
		if l.VMID != nil {
			line += " of VM " + render.ShortID(*l.VMID)
		}
		v.Leases = append(v.Leases, line)
	}
	for _, r := range n.Rules {
		if r.CommandString != nil {
			v.Rules = append(v.Rules, *r.CommandString)
		}
	}
	return v
}
