package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMPause(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "pause VM...",
		Short:             "Pause running VMs",
		Long:              "Make the vCPUs of VMs stand still. Memory stays; mvm vm resume lets them go on.",
		Example:           "  mvm vm pause web",
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.Pause", func(ctx context.Context, m *api.Client, args []string) error {
		return a.runVerb(ctx, m.VM.Pause, api.VMInput{Identifiers: args})
	})
}
