package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newNetworkDefault(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "default NETWORK",
		Short:             "Make a network the default",
		Long:              "Make a network the one that new VMs are put on when none is named.",
		Example:           "  mvm network default lab",
		Args:              needs(1, 1, "a network"),
		ValidArgsFunction: a.completeNetworks(1),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Network.SetDefault", func(ctx context.Context, m *api.Client, args []string) error {
		n, err := m.Network.SetDefault(ctx, api.NetworkInput{Identifiers: args})
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(n)
		}
		return a.out.Line(n.Name)
	})
}
