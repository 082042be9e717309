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
	timeout span
}

func newVMWait(a *app) *cobra.Command {
	var o vmWaitOptions
	cmd := &cobra.Command{
		Use:   "wait VM...",
		Short: "Wait until VMs are ready, or have stopped",
		Long: `Wait until VMs are what --for says: ready, which means that the agent in the guest
answers; ssh, that its SSH server does; port:N, that something in it accepts TCP
connections on that port; stopped, that the VM has ended. VMs that are just being
started are waited for too.

Several VMs are waited for at once. When one has not got there in time, or never will,
the command fails. Without --timeout the limit is settings.vm ready_timeout_sec, and
there is none for stopped.`,
		Example: `  mvm vm wait web
  mvm vm wait web db --for port:80 --timeout 2m
  mvm vm wait job --for stopped`,
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	cmd.Flags().StringVar(&o.what, "for", string(api.WaitReady), "what to wait for: ready, ssh, stopped or port:N")
	cmd.Flags().VarP(&o.timeout, "timeout", "t", "how long to wait, such as 90s")
	a.jsonFlag(cmd)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("for", fixed("ready", "ssh", "stopped", "port:")))
	return a.command(cmd, "VM.Wait VM.Get", func(ctx context.Context, m *api.Client, args []string) error {
		w, err := waitFor(o.what)
		if err != nil {
			return err
		}
		if w == api.WaitNone {
			return usagef("--for is empty").withHint("leave it out to wait until the guest is ready")
		}
		start := a.out.Now()
		if err := m.VM.Wait(ctx, api.VMInput{Identifiers: args}, w, time.Duration(o.timeout)); err != nil {
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
