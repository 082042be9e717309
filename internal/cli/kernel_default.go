package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newKernelDefault(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "default KERNEL",
		Short:             "Make a kernel the default",
		Long:              "Make a kernel the one that new VMs boot when none is named.",
		Example:           "  mvm kernel default debian",
		Args:              needs(1, 1, "a kernel"),
		ValidArgsFunction: a.completeKernels(1),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Kernel.SetDefault", func(ctx context.Context, m *api.Client, args []string) error {
		item, err := m.Kernel.SetDefault(ctx, api.KernelInput{Identifiers: args})
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(item)
		}
		return a.out.Line(kernelRef(item))
	})
}
