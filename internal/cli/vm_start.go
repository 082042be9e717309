package cli

import (
	"context"

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
	cmd.Flags().StringVar(&wait, "wait", "", "wait until the guest is ready or answers ssh (ready, ssh)")
	cmd.Flag("wait").NoOptDefVal = string(api.WaitReady)
	a.jsonFlag(cmd)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("wait", fixed("ready", "ssh")))
	return undone(a.command(cmd, "VM.Start", func(ctx context.Context, m *api.Client, args []string) error {
		w, err := waitFor(wait)
		if err != nil {
			return err
		}
		return a.runVerb(ctx, m.VM.Start, api.VMInput{Identifiers: args, Wait: w})
	}))
}
