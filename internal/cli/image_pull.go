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
		Use:   "pull [TYPE[:VERSION] | oci://[REGISTRY/]NAME[:TAG]]",
		Short: "Get an image",
		Long:  "Get an image into the cache: downloaded, or built where it cannot be downloaded.",
		Example: `  mvm image pull debian
  mvm image pull debian:12 --default
  mvm image pull --type debian --version 12
  mvm image pull oci://alpine:3.20
  mvm image pull oci://ghcr.io/owner/app@sha256:DIGEST --arch arm64
  mvm image pull docker-archive:./saved.tar
  mvm image pull oci-layout:./layout:1.0`,
		Args:              needs(0, 1, ""),
		ValidArgsFunction: fixed("debian"),
	}
	f := cmd.Flags()
	f.StringVarP(&o.input.Type, "type", "t", "", "image type, instead of the argument")
	f.StringVar(&o.input.Version, "version", "", "version; the newest when not given")
	f.BoolVarP(&o.input.Force, "force", "f", false, "get it again when it is there")
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "make it the default image")
	f.StringVar(&o.input.Arch, "arch", "", "architecture of a container image: amd64 or arm64 (default the host's)")
	f.BoolVar(&o.input.Insecure, "insecure", false, "plain HTTP to the registry; to this host it is used anyway")
	completeFlag(cmd, "arch", fixed("amd64", "arm64"))
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
