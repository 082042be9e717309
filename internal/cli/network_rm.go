package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func networkName(n *mvm.NetworkItem) string { return n.Name }

func newNetworkRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm NETWORK...",
		Aliases: []string{"remove", "delete", "del"},
		Short:   "Remove networks",
		Long: `Remove networks with their bridges and firewall rules. One that VMs refer to, and
the default one, are kept unless --force is given: VMs that lose their network
cannot be started any more. One that a VM runs on is kept always.`,
		Example:           "  mvm network rm lab",
		Args:              needs(1, -1, "a network"),
		ValidArgsFunction: a.completeNetworks(0),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when stopped VMs refer to it, and the default one")
	a.jsonFlag(cmd)
	return a.command(cmd, "Network.Remove", func(ctx context.Context, m *api.Client, args []string) error {
		batch, err := m.Network.Remove(ctx, api.NetworkInput{Identifiers: args}, force)
		return printBatch(a.out, batch, networkName, err)
	})
}
