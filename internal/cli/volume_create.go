package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type volumeCreateOptions struct {
	input    api.VolumeCreateInput
	readOnly bool
}

func newVolumeCreate(a *app) *cobra.Command {
	var o volumeCreateOptions
	cmd := &cobra.Command{
		Use:   "create NAME SIZE",
		Short: "Make a volume",
		Long: `Make a volume. A raw one takes all its room on the host at once, so that a VM never
runs out of it; with --sparse, and as qcow2, it takes room when it is written to.
Firecracker gets a qcow2 volume from qemu-storage-daemon (package qemu-system-common),
takes and gives it back only when the VM starts and ends, and takes no snapshot of such
a VM.`,
		Example: `  mvm volume create data 10G --mkfs ext4
  mvm volume create scratch 1T --sparse
  mvm volume create thin 100G --format qcow2 --mkfs ext4
  mvm volume create models 50G --shareable --mkfs xfs`,
		Args:              needs(2, 2, "a name and a size"),
		ValidArgsFunction: fixed(),
	}
	f := cmd.Flags()
	f.StringVar(&o.input.Format, "format", "", "raw or qcow2 (default raw)")
	f.BoolVar(&o.readOnly, "read-only", false, "no VM may ever write to it")
	f.BoolVar(&o.readOnly, "ro", false, "the same as --read-only")
	f.BoolVarP(&o.input.Shareable, "shareable", "s", false, "several VMs may have it at once, all read-only")
	f.BoolVar(&o.input.Writeback, "writeback", false, "cache writes on the host until the guest flushes them, as is done in any case")
	f.BoolVar(&o.input.Sparse, "sparse", false, "raw: take room when it is written to")
	f.StringVar(&o.input.Mkfs, "mkfs", "", "make a file system: ext4, xfs or btrfs")
	f.Lookup("ro").Hidden = true
	a.jsonFlag(cmd)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("format", fixed("raw", "qcow2")))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("mkfs", fixed("ext4", "xfs", "btrfs")))
	return undone(a.command(cmd, "Volume.Create", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Name, o.input.Size = args[0], args[1]
		given := cmd.Flags().Changed
		o.input.ReadOnly = ifGiven(given("read-only") || given("ro"), o.readOnly)
		return o.run(ctx, m, a.out)
	}))
}

func (o *volumeCreateOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	v, err := m.Volume.Create(ctx, o.input)
	if err != nil {
		return err
	}
	if out.JSON {
		return out.Object(v)
	}
	out.Detail(render.Size(v.SizeBytes) + " " + v.Format + " " + v.Path)
	return out.Line(v.Name)
}
