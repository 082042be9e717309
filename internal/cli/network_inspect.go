package cli

import (
	"context"
	"errors"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newNetworkInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NETWORK...",
		Short: "Show all about networks",
		Long: `Show networks with their leases, and the firewall rules of the network and its VMs
as they are in the kernel. Where another program, such as Docker, ufw or firewalld,
drops what it does not know, it says whether guests get through, and by which of its
chains or zones. With --json one network gives an object, several give an array.`,
		Example:           "  mvm network inspect default --json",
		Args:              needs(1, -1, "a network"),
		ValidArgsFunction: a.completeNetworks(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Network.Inspect", func(ctx context.Context, m *api.Client, args []string) error {
		get := func(id string) (string, *api.NetworkInspect, error) {
			n, err := m.Network.Inspect(ctx, api.NetworkInput{Identifiers: []string{id}})
			return "", n, err
		}
		if a.out.JSON {
			return inspect(a.out, args, get)
		}
		var errs []error
		for _, id := range args {
			_, n, err := get(id)
			if err == nil {
				err = networkTree(a.out, n)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// networkTree shows a network to people: a line for each lease and rule.
func networkTree(out *render.Output, n *api.NetworkInspect) error {
	item := *n.Network
	item.Leases, item.IPTablesRules = nil, nil
	nodes, err := out.Nodes(&item)
	if err != nil {
		return err
	}
	leases, rules := render.Node{Label: "leases"}, render.Node{Label: "rules"}
	for _, l := range n.Leases {
		line := render.Node{Label: l.IPv4, Value: "nobody"}
		for _, v := range n.Network.VMs {
			if l.VMID != nil && v.ID == *l.VMID {
				line.Value = v.Name + " (" + string(v.Status) + ")"
			}
		}
		leases.Children = append(leases.Children, line)
	}
	for _, r := range n.Rules {
		if r.CommandString != nil {
			rules.Children = append(rules.Children, render.Node{Value: *r.CommandString})
		}
	}
	nodes = append(nodes, leases, rules)
	if len(n.Passages) > 0 {
		others := render.Node{Label: "other programs"}
		for _, p := range n.Passages {
			is := "open"
			if !p.Open {
				is = "closed"
			}
			others.Children = append(others.Children, render.Node{Label: p.Program, Value: is + ": " + p.Place})
		}
		nodes = append(nodes, others)
	}
	return out.Tree("Network: "+n.Network.Name, nodes)
}
