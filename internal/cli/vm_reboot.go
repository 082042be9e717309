package cli

import (
	"context"
	"time"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMReboot(a *app) *cobra.Command {
	var force bool
	var wait string
	var limit span
	cmd := &cobra.Command{
		Use:               "reboot VM...",
		Short:             "Stop VMs and start them again",
		Long:              "Stop VMs and start them again. Disk, name and address are kept.",
		Example:           "  mvm vm reboot web",
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end it at once, without asking the guest")
	waitFlag(cmd, &wait)
	cmd.Flags().Var(&limit, "wait-timeout", "how long to wait, such as 90s")
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.Reboot", func(ctx context.Context, m *api.Client, args []string) error {
		w, err := waitFor(wait)
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("wait-timeout") && w == api.WaitNone {
			w = api.WaitReady
		}
		return a.runVerb(ctx, m.VM.Reboot, api.VMInput{Identifiers: args, Force: force, Wait: w, WaitLimit: time.Duration(limit)})
	})
}
