package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newNetworkSync(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sync [NETWORK...]",
		Short: "Mend networks in the kernel",
		Long: `Compare networks with what stands in the kernel, and mend what differs: bridges,
addresses, firewall rules and the devices of VMs that run. Without a name this is
done for all networks. Rules of other programs are left alone; ours among them, in
the chains of Docker or ufw or a zone of firewalld, are counted and mended as well.`,
		Example:           "  mvm network sync\n  mvm network sync default --json",
		Args:              needs(0, -1, ""),
		ValidArgsFunction: a.completeNetworks(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Network.Sync", func(ctx context.Context, m *api.Client, args []string) error {
		done, err := m.Network.Sync(ctx, api.NetworkInput{Identifiers: args})
		if done == nil {
			return err
		}
		if a.out.JSON {
			return errors.Join(err, a.out.Object(done))
		}
		return errors.Join(err, printSynced(a.out, done))
	})
}

func printSynced(out *render.Output, done map[string]*api.NetworkSynced) error {
	t := render.Table{Columns: []render.Column{
		{Head: "NETWORK", Keep: true}, {Head: "ADDED", Right: true, Keep: true}, {Head: "REMOVED", Right: true, Keep: true}, {Head: "KEPT", Right: true, Keep: true},
	}}
	for _, name := range slices.Sorted(maps.Keys(done)) {
		s := done[name]
		t.Rows = append(t.Rows, render.Text(name, fmt.Sprint(s.Added), fmt.Sprint(s.Removed), fmt.Sprint(s.Kept)))
	}
	if err := out.Table(t); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(done)) {
		for _, ch := range done[name].Changes {
			out.Detail(changeLine(ch))
		}
	}
	return nil
}

// changeLine says what was changed on the host.
func changeLine(ch api.HostChange) string {
	if ch.Old == "" {
		return ch.What + ": " + ch.New
	}
	return ch.What + ": " + ch.Old + " -> " + ch.New
}
