package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) snapshotCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"ss"},
		Short:   "Keep VMs as they are, and make VMs of them",
		Long: `Keep a VM as it is at one moment, with memory, devices and disks, and make VMs of
it that go on from there within a second. Each gets disks, addresses and an identity
of its own.`,
		Example: "  mvm snapshot create web --name warm\n  mvm snapshot restore warm copy --count 3 --resume\n  mvm snapshot rm warm",
	}, newSnapshotCreate(a), newSnapshotList(a), newSnapshotInspect(a), newSnapshotRestore(a), newSnapshotRemove(a))
}

func newSnapshotCreate(a *app) *cobra.Command {
	var in api.SnapshotCreateInput
	cmd := &cobra.Command{
		Use:   "create VM",
		Short: "Take a snapshot of a VM",
		Long: `Write memory, devices and disks of a VM that runs or is paused. The guest writes out
its file systems and stands still meanwhile; then it goes on, unless --pause is given.`,
		Example:           "  mvm snapshot create web\n  mvm snapshot create web --name warm",
		Args:              needs(1, 1, "a VM"),
		ValidArgsFunction: a.completeVMs(1),
	}
	cmd.Flags().StringVar(&in.Name, "name", "", "name of the snapshot; else made of the VM's name and the time")
	cmd.Flags().BoolVar(&in.Pause, "pause", false, "leave the VM paused")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Snapshot.Create", func(ctx context.Context, m *api.Client, args []string) error {
		in.VM = args[0]
		p := a.out.Progress()
		item, err := m.Snapshot.Create(ctx, in, api.OnProgress(p.Show))
		took := p.Stop()
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(item)
		}
		a.out.Detail("took " + render.Took(took))
		return a.out.Line(item.Name)
	}))
}

func newSnapshotList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List snapshots",
		Long:    "List the snapshots, oldest first.",
		Example: "  mvm snapshot ls\n  mvm snapshot ls --json",
		Args:    noArgs,
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Snapshot.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		all, err := m.Snapshot.ListAll(ctx)
		if err != nil {
			return err
		}
		if a.out.JSON {
			return render.List(a.out, all)
		}
		t := render.Table{Columns: []render.Column{
			{Head: "NAME", Keep: true}, {Head: "VM", Keep: true}, {Head: "SIZE", Right: true}, {Head: "VCPU", Right: true}, {Head: "MEM", Right: true},
			{Head: "HYPERVISOR"}, {Head: "AGE", Right: true, Keep: true},
		}}
		for _, s := range all {
			t.Rows = append(t.Rows, render.Text(s.Name, s.VMName, render.Size(s.SizeBytes), itoa(s.VCPUCount), render.MiB(s.MemSizeMiB),
				s.Hypervisor+" "+s.VMMVersion, a.out.Age(s.CreatedAt)))
		}
		return a.out.Table(t)
	})
}

func newSnapshotInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect SNAPSHOT...",
		Short: "Show all about snapshots",
		Long: `Show snapshots with their files and disks, and whether this host can load them.
With --json one snapshot gives an object, several give an array.`,
		Example:           "  mvm snapshot inspect warm --json",
		Args:              needs(1, -1, "a snapshot"),
		ValidArgsFunction: a.completeSnapshots(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Snapshot.Inspect", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, *api.SnapshotInspect, error) {
			s, err := m.Snapshot.Inspect(ctx, api.SnapshotInput{Identifiers: []string{id}})
			if err != nil {
				return "", nil, err
			}
			return "Snapshot: " + s.Snapshot.Name, s, nil
		})
	})
}

func newSnapshotRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm SNAPSHOT...",
		Aliases: []string{"remove", "delete", "del"},
		Short:   "Remove snapshots",
		Long: `Remove snapshots with their files. VMs that were made of them stay. On a terminal
you are asked first.`,
		Example:           "  mvm snapshot rm warm\n  mvm snapshot rm -f old older",
		Args:              needs(1, -1, "a snapshot"),
		ValidArgsFunction: a.completeSnapshots(0),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "ask nothing")
	a.jsonFlag(cmd)
	return a.command(cmd, "Snapshot.Remove Snapshot.Get", func(ctx context.Context, m *api.Client, args []string) error {
		if !force && a.canAsk() {
			var names []string
			for _, id := range args {
				if s, err := m.Snapshot.Get(ctx, api.SnapshotInput{Identifiers: []string{id}}); err == nil {
					names = append(names, mvm.Quote(s.Name))
				}
			}
			if len(names) > 0 {
				if err := a.confirm(ctx, "Remove "+allOf(names)+"? It cannot be had again.", false); err != nil {
					return err
				}
			}
		}
		batch, err := m.Snapshot.Remove(ctx, api.SnapshotInput{Identifiers: args})
		return printBatch(a.out, batch, func(s *mvm.SnapshotItem) string { return s.Name }, err)
	})
}

func (a *app) completeSnapshots(most int) completer {
	return a.complete(most, func(ctx context.Context, m *api.Client) ([]string, error) {
		all, err := m.Snapshot.ListAll(ctx)
		return named(all, func(s *mvm.SnapshotItem) string { return s.Name + "\tof " + s.VMName }), err
	})
}
