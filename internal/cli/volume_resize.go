package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newVolumeResize(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "resize VOLUME SIZE",
		Short: "Change the size of a volume",
		Long: `Change the size of a volume that no running VM has. Raw volumes only grow; qcow2 ones
shrink too, which loses what is beyond the new size: you are asked first.
The file system on it is grown when mvm mounts it the next time; one that you mount
yourself you grow yourself, and one that is to become smaller you shrink before.`,
		Example:           "  mvm volume resize data 20G",
		Args:              needs(2, 2, "a volume and a size"),
		ValidArgsFunction: a.completeVolumes(1),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "shrink without asking")
	a.jsonFlag(cmd)
	return a.command(cmd, "Volume.Resize Volume.Get", func(ctx context.Context, m *api.Client, args []string) error {
		in := api.VolumeResizeInput{Name: args[0], Size: args[1], Shrink: force}
		if !force && a.canAsk() {
			shrink, err := a.confirmShrink(ctx, m, in)
			if err != nil {
				return err
			}
			in.Shrink = shrink
		}
		v, err := m.Volume.Resize(ctx, in)
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(v)
		}
		a.out.Detail(render.Size(v.SizeBytes))
		return a.out.Line(v.Name)
	})
}

// confirmShrink asks before a qcow2 volume becomes smaller. What is wrong with the
// input is left for the operation to tell.
func (a *app) confirmShrink(ctx context.Context, m *api.Client, in api.VolumeResizeInput) (bool, error) {
	size, err := mvm.ParseSize(in.Size)
	if err != nil {
		return false, nil //nolint:nilerr // see above
	}
	v, err := m.Volume.Get(ctx, api.VolumeInput{Identifiers: []string{in.Name}})
	if err != nil || v.Format == "raw" || size >= v.SizeBytes {
		return false, nil //nolint:nilerr // see above
	}
	return true, a.confirm(ctx, "Shrink "+mvm.Quote(v.Name)+" from "+render.Size(v.SizeBytes)+" to "+render.Size(size)+"? What is beyond is lost.", false)
}
