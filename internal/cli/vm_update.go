package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMUpdate(a *app) *cobra.Command {
	var b vmBeyond
	cmd := &cobra.Command{
		Use:   "update VM...",
		Short: "Change limits, balloon, metadata and reach of VMs",
		Long: `Change VMs: at once where they run, and for all later starts. A device that a VM was
made without cannot be added.`,
		Example: `  mvm vm update web --net-limit 10M --disk-limit 50M,1000ops
  mvm vm update web --balloon 256
  mvm vm update web --egress deny
  mvm vm update web --egress 10.0.0.0/8,files.example.org,*.example.org`,
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	b.changeable(cmd.Flags())
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.Update", func(ctx context.Context, m *api.Client, args []string) error {
		change := api.VMUpdateInput{Identifiers: args}
		var err error
		if cmd.Flags().Changed("balloon") {
			change.BalloonMiB = &b.balloon
		}
		if change.Metadata, err = b.readMetadata(cmd); err != nil {
			return err
		}
		if change.DiskLimit, err = limit(cmd, "disk-limit", b.diskLimit); err != nil {
			return err
		}
		if change.NetLimit, err = limit(cmd, "net-limit", b.netLimit); err != nil {
			return err
		}
		if cmd.Flags().Changed("egress") {
			list, err := mvm.ParseEgress(b.egress)
			if err != nil {
				return err
			}
			change.Egress = &list
		}
		batch, err := m.VM.Update(ctx, change)
		return printBatch(a.out, batch, vmName, err)
	})
}
