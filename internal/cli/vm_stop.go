package cli

import (
	"context"
	"time"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMStop(a *app) *cobra.Command {
	var force bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "stop VM...",
		Short: "Stop VMs",
		Long: `Stop VMs: the guest is asked to shut down, and ended when it does not in time. Disk,
name and address are kept.`,
		Example:           "  mvm vm stop web\n  mvm vm stop --force web db",
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end it at once, without asking the guest")
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", 0, "how long the guest may take, such as 30s")
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.Stop", func(ctx context.Context, m *api.Client, args []string) error {
		if timeout < 0 {
			return usagef("--timeout is negative").withHint("write for example 30s")
		}
		return a.runVerb(ctx, m.VM.Stop, api.VMInput{Identifiers: args, Force: force, Timeout: timeout})
	})
}
