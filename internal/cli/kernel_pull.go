package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type kernelPullOptions struct{ input api.KernelPullInput }

func newKernelPull(a *app) *cobra.Command {
	var o kernelPullOptions
	cmd := &cobra.Command{
		Use:   "pull [TYPE[:VERSION]]",
		Short: "Get a kernel",
		Long: `Get a kernel into the cache. "debian" is the distribution's cloud kernel, fetched
from the package mirror that this host is configured for; nothing is installed
on the host.`,
		Example: `  mvm kernel pull debian
  mvm kernel pull debian --default
  mvm kernel pull --type debian`,
		Args:              needs(0, 1, ""),
		ValidArgsFunction: fixed("debian"),
	}
	f := cmd.Flags()
	f.StringVar(&o.input.KernelType, "type", "", "kernel type, instead of the argument")
	f.StringVar(&o.input.Version, "version", "", "version; the newest when not given")
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "make it the default kernel")
	f.BoolVarP(&o.input.Force, "force", "f", false, "get it again when it is there")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Kernel.Pull", func(ctx context.Context, m *api.Client, args []string) (err error) {
		o.input.KernelType, o.input.Version, err = typeVersion(args, o.input.KernelType, o.input.Version)
		if err != nil {
			return err
		}
		return o.run(ctx, m, a.out)
	}))
}

func (o *kernelPullOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	res, err := m.Kernel.Pull(ctx, o.input, api.OnProgress(p.Show))
	took := p.Done()
	if err != nil {
		return err
	}
	for _, w := range res.Warnings {
		out.Warn(w)
	}
	for _, s := range res.InfoMessages {
		out.Detail(s)
	}
	if out.JSON {
		return out.Object(res)
	}
	out.Detail("pulled in " + render.Took(took))
	return out.Line(res.KernelType + ":" + res.Version)
}
