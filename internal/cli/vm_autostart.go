package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newVMAutostart(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "autostart",
		Short: "Start the VMs that ran before the host rebooted",
		Long: `Start the VMs whose restart policy is always and that did not end by a command: those
that ran when the host went down, above all. It is meant to be run once when the host
has booted, and does nothing where nothing is to be done.`,
		Example: "  mvm vm create web --restart always\n  mvm vm autostart",
		Args:    noArgs,
	}
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "VM.Autostart", func(ctx context.Context, m *api.Client, _ []string) error {
		p := a.out.Progress()
		batch, err := m.VM.Autostart(ctx, api.OnProgress(p.Show))
		took := p.Done()
		if len(batch.Items()) > 0 {
			a.out.Detail("took " + render.Took(took))
		}
		return printBatch(a.out, batch, vmName, err)
	}))
}
