package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type imageBuildOptions struct{ input api.ImageBuildInput }

func newImageBuild(a *app) *cobra.Command {
	var o imageBuildOptions
	cmd := &cobra.Command{
		Use:   "build TYPE[:VERSION]",
		Short: "Build an image from this host's package mirror",
		Long: `Build an image. "debian:12" is a small Debian with systemd and an SSH server, made
from the package mirror that this host is configured for; "tiny" is busybox with
an SSH server, made in seconds. An image that is there already is kept.`,
		Example: `  mvm image build tiny
  mvm image build debian:12 --default
  mvm image build debian:12 --include cloud-init,rsync`,
		Args:              needs(1, 1, "an image to build, such as debian:12 or tiny"),
		ValidArgsFunction: fixed("tiny", "debian:12"),
	}
	cmd.Flags().BoolVarP(&o.input.Force, "force", "f", false, "build it again when it is there")
	cmd.Flags().BoolVarP(&o.input.SetDefault, "default", "d", false, "make it the default image")
	cmd.Flags().StringSliceVar(&o.input.Packages, "include", nil, "packages to install besides, separated by commas; not for tiny")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Image.Build", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Ref = args[0]
		return o.run(ctx, m, a.out)
	}))
}

func (o *imageBuildOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	item, err := m.Image.Build(ctx, o.input, api.OnProgress(p.Show))
	took := p.Done()
	if err != nil {
		return err
	}
	out.Detail("built in " + render.Took(took))
	return printImage(out, item)
}

func printImage(out *render.Output, item *mvm.ImageItem) error {
	if out.JSON {
		return out.Object(item)
	}
	return out.Line(imageRef(item))
}
