package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newNetworkDNS(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns NETWORK on|off",
		Short: "Switch the DNS server of a network on or off",
		Long: `Switch the DNS server of a network on or off. It listens on the gateway while VMs run
there, answers for their names (web and web.mvm), and asks this host's resolvers, or
those that 'mvm config set defaults.vm dns_server' names, for the rest. Without it
guests ask defaults.vm dns_server themselves. What a guest asks is told to it when it
is started.`,
		Example: "  mvm network dns lab off",
		Args:    needs(2, 2, "a network and on or off"),
	}
	networks := a.completeNetworks(1)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return []string{"on", "off"}, cobra.ShellCompDirectiveNoFileComp
		}
		return networks(cmd, args, typed)
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Network.SetDNS", func(ctx context.Context, m *api.Client, args []string) error {
		if args[1] != "on" && args[1] != "off" {
			return usagef("%q is neither on nor off", args[1]).withHint("write for example 'mvm network dns %s off'", args[0])
		}
		n, err := m.Network.SetDNS(ctx, api.NetworkInput{Identifiers: args[:1]}, args[1] == "on")
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(n)
		}
		return a.out.Line(n.Name)
	})
}
