package cli

import (
	"context"
	"strconv"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func itoa(n int) string { return strconv.Itoa(n) }

type snapshotRestoreOptions struct {
	input api.SnapshotRestoreInput
	count int
}

func newSnapshotRestore(a *app) *cobra.Command {
	var o snapshotRestoreOptions
	cmd := &cobra.Command{
		Use:   "restore SNAPSHOT NAME",
		Short: "Make VMs of a snapshot",
		Long: `Make one VM of a snapshot, or with --count several, NAME-1, NAME-2 and so on. Each
goes on where the snapshot was taken, with disks, addresses, host name, machine id
and SSH host keys of its own. They are paused, unless --resume is given.`,
		Example: "  mvm snapshot restore warm copy --resume\n  mvm snapshot restore warm worker --count 10 --resume",
		Args:    needs(2, 2, "a snapshot and a name for the VM"),
	}
	cmd.ValidArgsFunction = a.completeSnapshots(1)
	f := cmd.Flags()
	f.StringVar(&o.input.NetworkName, "network", "", "network of the VM; else the one that the snapshot's VM was on")
	f.BoolVar(&o.input.Resume, "resume", false, "have the VM go on at once")
	f.IntVarP(&o.count, "count", "c", 0, "make so many VMs, NAME-1, NAME-2, …")
	a.jsonFlag(cmd)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("network", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return a.completeNetworks(0)(cmd, nil, typed)
	}))
	return undone(a.command(cmd, "Snapshot.Restore", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Snapshot, o.input.Name = args[0], args[1]
		o.input.Count = ifGiven(cmd.Flags().Changed("count"), o.count)
		return o.run(ctx, m, a.out)
	}))
}

func (o *snapshotRestoreOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	res, err := m.Snapshot.Restore(ctx, o.input, api.OnProgress(p.Show))
	took := p.Stop()
	if err != nil && (res == nil || len(res.VMs) == 0) {
		return err
	}
	if out.JSON {
		if failed := out.Object(res); err == nil {
			err = failed
		}
		return err
	}
	out.Detail("took " + render.Took(took))
	for _, v := range res.VMs {
		if failed := out.Line(v.Name); err == nil {
			err = failed
		}
	}
	if err == nil && !o.input.Resume {
		out.Notice("paused; go on with:  mvm vm resume " + res.VMs[0].Name)
	}
	return err
}
