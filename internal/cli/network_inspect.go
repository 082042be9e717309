package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
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
		return inspect(a.out, args, func(id string) (string, *api.NetworkInspect, error) {
			n, err := m.Network.Inspect(ctx, api.NetworkInput{Identifiers: []string{id}})
			if err != nil {
				return "", nil, err
			}
			return "Network: " + n.Network.Name, n, nil
		})
	})
}
