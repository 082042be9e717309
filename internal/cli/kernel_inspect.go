package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newKernelInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect KERNEL...",
		Short: "Show all about kernels",
		Long: `Show all that is known about kernels: where they came from and how that was checked,
what the file says of itself, and which features it has. With --json one kernel gives an
object, several give an array.`,
		Example:           "  mvm kernel inspect debian --json",
		Args:              needs(1, -1, "a kernel"),
		ValidArgsFunction: a.completeKernels(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Kernel.Inspect", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, *api.KernelInspect, error) {
			k, err := m.Kernel.Inspect(ctx, api.KernelInput{Identifiers: []string{id}})
			if err != nil {
				return "", nil, err
			}
			return "Kernel: " + kernelRef(k.Kernel), k, nil
		})
	})
}
