package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect VM...",
		Short: "Show all about VMs",
		Long: `Show all about VMs: settings, network, disk, console, processes, guest and last
events. With --json one VM gives an object, several give an array.`,
		Example:           "  mvm vm inspect web\n  mvm vm inspect web --json",
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.Inspect", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, *api.VMInspect, error) {
			v, err := m.VM.Inspect(ctx, api.VMInput{Identifiers: []string{id}})
			if err != nil {
				return "", nil, err
			}
			return "VM: " + v.VM.Name, v, nil
		})
	})
}
