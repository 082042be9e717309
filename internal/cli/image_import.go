package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type imageImportOptions struct{ input api.ImageImportInput }

func newImageImport(a *app) *cobra.Command {
	var o imageImportOptions
	cmd := &cobra.Command{
		Use:   "import NAME PATH|VM",
		Short: "Make an image of a file or of a VM's disk",
		Long: `Make an image of a file: a disk in qcow2, raw, VHD or VMDK, a tar archive of a root
file system, or a squashfs; each plain or compressed with gzip, xz, zstd or bzip2. What
it is shows by its content. On a disk the root partition is looked for by its type, its
label, its size and its file system. An ext4, XFS or btrfs root is kept; archives and
squashfs become ext4.

Instead of a path the name of a VM makes an image of its disk; a VM that runs stands
still for a moment. Caches, logs and what belonged to one machine are dropped from ext4
roots, which become as small as they can be, and the result is compressed until it is
used; --skip-optimization keeps all as it is.`,
		Example: `  mvm image import debian ./debian-12-genericcloud-amd64.qcow2
  mvm image import rootfs ./rootfs.tar.zst --version 3 --default
  mvm image import odd ./disk.img --root-partition 3
  mvm image import golden web`,
		Args: needs(2, 2, "a name for the image, and a file or VM"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.input.Format, "format", "", "auto, qcow2, raw, tar-rootfs, vhd, vmdk or squashfs (default auto)")
	f.IntVar(&o.input.Partition, "root-partition", 0, "number of the root partition; looked for when not given")
	f.StringVar(&o.input.Version, "version", "", "version of the image (default imported)")
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "make it the default image")
	f.BoolVarP(&o.input.Force, "force", "f", false, "replace an image of that name and version")
	f.BoolVar(&o.input.SkipOptimization, "skip-optimization", false, "keep size and content as they are, and do not compress")
	detectorFlag(cmd, &o.input.DisabledDetectors)
	completeFlag(cmd, "format", fixed("auto", "qcow2", "raw", "tar-rootfs", "vhd", "vmdk", "squashfs"))
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Image.Import", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Name, o.input.SourcePath = args[0], args[1]
		return o.run(ctx, m, a.out)
	}))
}

// detectorFlag adds --disable-detector, as image pull and image import have it.
func detectorFlag(cmd *cobra.Command, to *[]string) {
	cmd.Flags().StringSliceVar(to, "disable-detector", nil, "do not look for the root partition by type, label, size or filesystem")
	completeFlag(cmd, "disable-detector", fixed("type", "label", "size", "filesystem"))
}

func (o *imageImportOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	item, err := m.Image.Import(ctx, o.input, api.OnProgress(p.Show))
	took := p.Done()
	if err != nil {
		return err
	}
	out.Detail("imported in " + render.Took(took))
	return printImage(out, item)
}
