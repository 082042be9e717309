package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newKernelRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm KERNEL...",
		Aliases:           []string{"remove", "delete", "del"},
		Short:             "Remove kernels",
		Long:              "Remove kernels from the cache. One that VMs boot is kept unless --force is given.",
		Example:           "  mvm kernel rm debian:6.1.0",
		Args:              needs(1, -1, "a kernel"),
		ValidArgsFunction: a.completeKernels(0),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when VMs use it")
	a.jsonFlag(cmd)
	return a.command(cmd, "Kernel.Remove", func(ctx context.Context, m *api.Client, args []string) error {
		batch, err := m.Kernel.Remove(ctx, api.KernelInput{Identifiers: args}, force)
		return printBatch(a.out, batch, kernelRef, err)
	})
}
