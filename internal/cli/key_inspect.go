package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newKeyInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "inspect KEY...",
		Short:             "Show all about SSH keys",
		Long:              "Show all that is known about SSH keys. With --json one key gives an object, several give an array.",
		Example:           "  mvm key inspect work\n  mvm key inspect SHA256:uD4y --json",
		Args:              needs(1, -1, "a key"),
		ValidArgsFunction: a.completeKeys(),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Key.Inspect", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, *api.KeyInspect, error) {
			k, err := m.Key.Inspect(ctx, api.KeyInput{Identifiers: []string{id}})
			if err != nil {
				return "", nil, err
			}
			return "Key: " + k.Key.Name, k, nil
		})
	})
}
