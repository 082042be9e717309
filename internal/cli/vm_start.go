package cli

import (
	"context"
	"time"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMStart(a *app) *cobra.Command {
	var wait string
	cmd := &cobra.Command{
		Use:               "start VM...",
		Short:             "Start stopped VMs",
		Long:              "Start VMs that are stopped or crashed. Disk, name and address are as before.",
		Example:           "  mvm vm start web --wait",
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	var limit span
	waitFlag(cmd, &wait)
	cmd.Flags().Var(&limit, "wait-timeout", "how long to wait, such as 90s")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "VM.Start", func(ctx context.Context, m *api.Client, args []string) error {
		w, err := waitFor(wait)
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("wait-timeout") && w == api.WaitNone {
			w = api.WaitReady
		}
		return a.runVerb(ctx, m.VM.Start, api.VMInput{Identifiers: args, Wait: w, WaitLimit: time.Duration(limit)})
	}))
}
