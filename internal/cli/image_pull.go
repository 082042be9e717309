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
		Long: `Get an image into the cache. A distribution's own cloud image is downloaded, checked
against what its publisher says, and made an image as 'image import' does it; what there
is shows 'image ls --remote'. oci://NAME gets a container image. "tiny" is built from the
host's package mirror, and so is Debian where its download cannot be reached.

A file images.yaml in the configuration directory adds types, or replaces those that are
known. Where a publisher signs its checksums and its key is in trusted-keys there, the
signature has to be right.`,
		Example: `  mvm image pull debian
  mvm image pull ubuntu:24.04 --default
  mvm image pull --type debian --version 12
  mvm image pull oci://alpine:3.20
  mvm image pull oci://ghcr.io/owner/app@sha256:DIGEST --arch arm64
  mvm image pull docker-archive:./saved.tar
  mvm image pull oci-layout:./layout:1.0`,
		Args:              needs(0, 1, ""),
		ValidArgsFunction: fixed("ubuntu", "ubuntu-minimal", "debian", "alpine", "archlinux", "fedora", "rocky", "opensuse", "amazonlinux", "firecracker", "tiny"),
	}
	f := cmd.Flags()
	f.StringVarP(&o.input.Type, "type", "t", "", "image type, instead of the argument")
	f.StringVar(&o.input.Version, "version", "", "version; the newest when not given")
	f.BoolVarP(&o.input.Force, "force", "f", false, "get it again when it is there")
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "make it the default image")
	f.StringVar(&o.input.Arch, "arch", "", "architecture: amd64 or arm64 (default the host's)")
	f.BoolVar(&o.input.Insecure, "insecure", false, "plain HTTP to the registry; to this host it is used anyway")
	completeFlag(cmd, "arch", fixed("amd64", "arm64"))
	f.BoolVar(&o.input.NoCache, "no-cache", false, "do not use downloads and listings kept from before")
	f.BoolVar(&o.input.SkipChecksum, "skip-checksum", false, "take it unchecked; inspect says so")
	f.BoolVar(&o.input.SkipOptimization, "skip-optimization", false, "keep size and content as they are, and do not compress")
	detectorFlag(cmd, &o.input.DisabledDetectors)
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
