package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type imagePullOptions struct{ input api.ImagePullInput }

func newImagePull(a *app) *cobra.Command {
	var o imagePullOptions
	cmd := &cobra.Command{
		Use:   "pull [TYPE[:VERSION]]",
		Short: "Get an image",
		Long:  "Get an image into the cache: downloaded, or built where it cannot be downloaded.",
		Example: `  mvm image pull debian
  mvm image pull debian:12 --default
  mvm image pull --type debian --version 12`,
		Args:              needs(0, 1, ""),
		ValidArgsFunction: fixed("debian"),
	}
	f := cmd.Flags()
	f.StringVarP(&o.input.Type, "type", "t", "", "image type, instead of the argument")
	f.StringVar(&o.input.Version, "version", "", "version; the newest when not given")
	f.BoolVarP(&o.input.Force, "force", "f", false, "get it again when it is there")
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "make it the default image")
	f.BoolVar(&o.input.NoCache, "no-cache", false, "do not use downloads and listings kept from before")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Image.Pull", func(ctx context.Context, m *api.Client, args []string) (err error) {
		o.input.Type, o.input.Version, err = typeVersion(args, o.input.Type, o.input.Version)
		if err != nil {
			return err
		}
		return o.run(ctx, m, a.out)
	}))
}

func (o *imagePullOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	item, err := m.Image.Pull(ctx, o.input, api.OnProgress(p.Show))
	took := p.Done()
	if err != nil {
		return err
	}
	out.Detail("pulled in " + render.Took(took))
	return printImage(out, item)
}
