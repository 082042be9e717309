package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

// kernelInspect is what inspect shows of a kernel.
type kernelInspect struct {
	Kernel *mvm.KernelItem `json:"kernel"`
}

func newKernelInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "inspect KERNEL...",
		Short:             "Show all about kernels",
		Long:              "Show all that is known about kernels. With --json one kernel gives an object, several give an array.",
		Example:           "  mvm kernel inspect debian --json",
		Args:              needs(1, -1, "a kernel"),
		ValidArgsFunction: a.completeKernels(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Kernel.Get", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, kernelInspect, error) {
			item, err := m.Kernel.Get(ctx, api.KernelInput{Identifiers: []string{id}})
			if err != nil {
				return "", kernelInspect{}, err
			}
			return "Kernel: " + kernelRef(item), kernelInspect{item}, nil
		})
	})
}
