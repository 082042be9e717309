package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVolumeInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect VOLUME...",
		Short: "Show all about volumes",
		Long: `Show volumes with the VMs that have them and what qemu-img says of their files. With
--json one volume gives an object, several give an array.`,
		Example:           "  mvm volume inspect data\n  mvm volume inspect data --json",
		Args:              needs(1, -1, "a volume"),
		ValidArgsFunction: a.completeVolumes(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Volume.Inspect", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, *api.VolumeInspect, error) {
			v, err := m.Volume.Inspect(ctx, api.VolumeInput{Identifiers: []string{id}})
			if err != nil {
				return "", nil, err
			}
			return "Volume: " + v.Volume.Name, v, nil
		})
	})
}

func (a *app) completeVolumes(most int) completer {
	return a.complete(most, volumeNames)
}
