package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVolumeRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm VOLUME...",
		Aliases: []string{"remove", "delete", "del"},
		Short:   "Remove volumes",
		Long: `Remove volumes with all that is on them. On a terminal you are asked first. One that
is attached is kept unless --force is given; a VM that runs keeps what it has open
until it ends.`,
		Example:           "  mvm volume rm scratch\n  mvm volume rm --force data",
		Args:              needs(1, -1, "a volume"),
		ValidArgsFunction: a.completeVolumes(0),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "ask nothing, and remove attached ones too")
	a.jsonFlag(cmd)
	return a.command(cmd, "Volume.Remove Volume.Get", func(ctx context.Context, m *api.Client, args []string) error {
		if !force && a.canAsk() {
			if err := a.confirmVolumes(ctx, m, args); err != nil {
				return err
			}
		}
		batch, err := m.Volume.Remove(ctx, api.VolumeInput{Identifiers: args}, force)
		return printBatch(a.out, batch, func(v *mvm.VolumeItem) string { return v.Name }, err)
	})
}

// confirmVolumes asks before volumes are removed. What cannot be found is left for
// the removal to tell.
func (a *app) confirmVolumes(ctx context.Context, m *api.Client, ids []string) error {
	var names []string
	for _, id := range ids {
		if v, err := m.Volume.Get(ctx, api.VolumeInput{Identifiers: []string{id}}); err == nil {
			names = append(names, mvm.Quote(v.Name))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return a.confirm(ctx, "Remove "+allOf(names)+" with all that is on it?", false)
}

// volumeNames lists volumes for completion.
func volumeNames(ctx context.Context, m *api.Client) ([]string, error) {
	volumes, err := m.Volume.ListAll(ctx)
	return named(volumes, func(v *mvm.VolumeItem) string { return v.Name + "\t" + string(v.Status) }), err
}
