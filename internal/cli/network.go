package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) networkCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "network",
		Aliases: []string{"net"},
		Short:   "Manage the networks of VMs",
		Long: `Manage the bridge networks that VMs are on. The network "default" is made by init
or by the first VM.`,
		Example: "  mvm network create lab\n  mvm network ls",
	}, newNetworkCreate(a), newNetworkList(a), newNetworkInspect(a), newNetworkDefault(a), newNetworkSync(a), newNetworkDNS(a), newNetworkDenials(a), newNetworkRemove(a))
}

type networkListOptions struct{ long bool }

func newNetworkList(a *app) *cobra.Command {
	var o networkListOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List networks",
		Long:    "List the networks, with the addresses given out on each.",
		Example: "  mvm network ls\n  mvm network ls --json",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.long, "long", false, "also gateways and ids")
	a.jsonFlag(cmd)
	return a.command(cmd, "Network.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func (o *networkListOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	networks, err := m.Network.ListAll(ctx)
	if err != nil {
		return err
	}
	if out.JSON {
		return render.List(out, networks)
	}
	t := render.Table{Columns: []render.Column{
		{Head: "NAME", Keep: true}, {Head: "SUBNET", Keep: true}, {Head: "BRIDGE"}, {Head: "STATE"}, {Head: "NAT"},
		{Head: "DEFAULT"}, {Head: "AGE", Right: true, Keep: true},
	}}
	if o.long {
		t.Columns = append(t.Columns, render.Column{Head: "GATEWAY"}, render.Column{Head: "ID", Keep: true})
	}
	for _, n := range networks {
		state := render.Cell{Text: "down", Tone: render.ToneMuted}
		if n.BridgeActive {
			state = render.Cell{Text: "up", Tone: render.ToneGood}
		}
		nat := "no"
		if n.NATEnabled {
			nat = "yes"
		}
		row := []render.Cell{
			{Text: n.Name}, {Text: n.Subnet}, {Text: n.Bridge}, state, {Text: nat}, mark(n.IsDefault, true), {Text: out.Age(n.CreatedAt)},
		}
		if o.long {
			row = append(row, render.Text(n.IPv4Gateway, render.ShortID(n.ID))...)
		}
		t.Rows = append(t.Rows, row)
	}
	return out.Table(t)
}
