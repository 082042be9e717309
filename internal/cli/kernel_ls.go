package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type kernelListOptions struct{ long bool }

func newKernelList(a *app) *cobra.Command {
	var o kernelListOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List kernels",
		Long:    "List the kernels in the cache.",
		Example: "  mvm kernel ls\n  mvm kernel ls --json",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.long, "long", false, "also ids and paths")
	a.jsonFlag(cmd)
	return a.command(cmd, "Kernel.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func (o *kernelListOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	kernels, err := m.Kernel.ListAll(ctx)
	if err != nil {
		return err
	}
	if out.JSON {
		return render.List(out, kernels)
	}
	return out.Table(kernelTable(out, kernels, o.long))
}
