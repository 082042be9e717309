package cli

import (
	"context"
	"time"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type vmWaitOptions struct {
	what    string
	timeout time.Duration
}

func newVMWait(a *app) *cobra.Command {
	var o vmWaitOptions
	cmd := &cobra.Command{
		Use:   "wait VM...",
		Short: "Wait until VMs are ready",
		Long: `Wait until the guests of VMs are ready, which means that the agent in them answers,
or with --for ssh until their SSH servers do.`,
		Example:           "  mvm vm wait web\n  mvm vm wait web --for ssh --timeout 2m",
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	cmd.Flags().StringVar(&o.what, "for", string(api.WaitReady), "what to wait for: ready or ssh")
	cmd.Flags().DurationVarP(&o.timeout, "timeout", "t", 0, "how long to wait, such as 90s")
	a.jsonFlag(cmd)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("for", fixed("ready", "ssh")))
	return a.command(cmd, "VM.Wait VM.Get", func(ctx context.Context, m *api.Client, args []string) error {
		w, err := waitFor(o.what)
		if err != nil {
			return err
		}
		if w == api.WaitNone || o.timeout < 0 {
			return usagef("--for is empty or --timeout negative").withHint("use --for ready or --for ssh, and a time such as 90s")
		}
		start := a.out.Now()
		if err := m.VM.Wait(ctx, api.VMInput{Identifiers: args}, w, o.timeout); err != nil {
			return err
		}
		a.out.Detail("took " + render.Took(a.out.Now().Sub(start)))
		return a.printVMs(ctx, m, args)
	})
}

// printVMs prints the selected VMs as they are now.
func (a *app) printVMs(ctx context.Context, m *api.Client, ids []string) error {
	var b vmBatch
	for _, id := range ids {
		v, err := m.VM.Get(ctx, api.VMInput{Identifiers: []string{id}})
		b.Entries = append(b.Entries, vmEntry{Identifier: id, Item: v, Err: err})
	}
	return printBatch(a.out, b, vmName, b.Err())
}
