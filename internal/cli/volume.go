package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) volumeCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "volume",
		Aliases: []string{"vol"},
		Short:   "Manage data disks of VMs",
		Long: `Manage volumes: data disks that outlive the VMs that have them. A volume is attached
when a VM is created ('mvm vm create --volume') or later, also while it runs.`,
		Example: `  mvm volume create data 10G --mkfs ext4
  mvm vm create db --volume data:/var/lib/db
  mvm volume ls`,
	}, newVolumeCreate(a), newVolumeList(a), newVolumeInspect(a), newVolumeResize(a), newVolumeAttach(a), newVolumeDetach(a), newVolumeRemove(a))
}

type volumeListOptions struct{ long bool }

func newVolumeList(a *app) *cobra.Command {
	var o volumeListOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Long:    "List the volumes, and which VM has each.",
		Example: "  mvm volume ls\n  mvm volume ls --json",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.long, "long", false, "also paths and ids")
	a.jsonFlag(cmd)
	return a.command(cmd, "Volume.ListAll VM.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func (o *volumeListOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	volumes, err := m.Volume.ListAll(ctx)
	if err != nil {
		return err
	}
	if out.JSON {
		return render.List(out, volumes)
	}
	vms, err := m.VM.ListAll(ctx)
	if err != nil {
		return err
	}
	t := render.Table{Columns: []render.Column{
		{Head: "NAME", Keep: true}, {Head: "SIZE", Right: true, Keep: true}, {Head: "FORMAT"}, {Head: "FS"}, {Head: "MODE"},
		{Head: "STATUS", Keep: true}, {Head: "VM", Keep: true}, {Head: "AGE", Right: true},
	}}
	if o.long {
		t.Columns = append(t.Columns, render.Column{Head: "PATH"}, render.Column{Head: "ID", Keep: true})
	}
	for _, v := range volumes {
		status := render.Cell{Text: string(v.Status)}
		if v.Status == mvm.VolumeAttached {
			status.Tone = render.ToneGood
		}
		row := []render.Cell{
			{Text: v.Name}, {Text: render.Size(v.SizeBytes)}, {Text: v.Format}, {Text: render.OrDash(v.FSType)}, {Text: volumeMode(v)},
			status, {Text: render.OrDash(holders(v, vms))}, {Text: out.Age(v.CreatedAt)},
		}
		if o.long {
			row = append(row, render.Text(v.Path, render.ShortID(v.ID))...)
		}
		t.Rows = append(t.Rows, row)
	}
	return out.Table(t)
}

// volumeMode says how a volume may be used: rw, ro, or shared.
func volumeMode(v *mvm.VolumeItem) string {
	mode := "rw"
	if v.IsReadOnly {
		mode = "ro"
	}
	if v.IsShareable {
		mode += ",shared"
	}
	return mode
}

// holders names the VMs that have a volume.
func holders(v *mvm.VolumeItem, vms []*mvm.VMInstanceItem) string {
	names := ""
	for _, vm := range vms {
		for _, id := range vm.VolumeIDs {
			if id == v.ID {
				if names != "" {
					names += ","
				}
				names += vm.Name
			}
		}
	}
	return names
}
