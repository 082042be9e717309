package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newNetworkDenials(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "denials VM",
		Short: "Show what a VM was not let to",
		Long: `Show where a VM with --egress has sent packets to that were dropped: how many since it
was started, or its list was changed, and the destinations of the last hour. Names
that it may not ask for are refused by the network's DNS server, and so are not among
them.`,
		Example:           "  mvm network denials web\n  mvm network denials web --json",
		Args:              needs(1, 1, "a VM"),
		ValidArgsFunction: a.completeVMs(1),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Network.Denials", func(ctx context.Context, m *api.Client, args []string) error {
		d, err := m.Network.Denials(ctx, api.VMInput{Identifiers: args})
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(d)
		}
		return printDenials(a.out, d)
	})
}

func printDenials(out *render.Output, d *api.NetworkDenials) error {
	t := render.Table{Columns: []render.Column{
		{Head: "DESTINATION", Keep: true}, {Head: "PROTOCOL"}, {Head: "PORT", Right: true}, {Head: "PACKETS", Right: true, Keep: true}, {Head: "BYTES", Right: true}, {Head: "LAST", Right: true},
	}}
	for _, to := range d.To {
		port := ""
		if to.Port != 0 {
			port = strconv.Itoa(to.Port)
		}
		t.Rows = append(t.Rows, render.Text(to.Address, to.Protocol, port, fmt.Sprint(to.Packets), fmt.Sprint(to.Bytes), out.Age(to.LastAt)))
	}
	if err := out.Table(t); err != nil {
		return err
	}
	switch {
	case d.Egress == "allow":
		out.Notice(d.VM + " may reach everything: nothing is denied; see 'mvm vm update --egress'")
	case !d.Status.Active():
		out.Notice(d.VM + " is " + string(d.Status) + ": nothing is counted while it does not run")
	default:
		out.Notice(fmt.Sprintf("%s may reach: %s; %d packets (%d bytes) were denied", d.VM, d.Egress, d.Packets, d.Bytes))
	}
	return nil
}
