package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm VM...",
		Aliases: []string{"remove", "delete", "del"},
		Short:   "Remove VMs with their disks",
		Long: `Remove VMs with all that belongs to them: disk, address, network device and files.
One that runs is stopped first: on a terminal after a question, in a script
without. With --force nothing is asked, neither you nor the guest.`,
		Example:           "  mvm vm rm web\n  mvm vm rm --force web db",
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "ask nothing and end it at once")
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.Remove", func(ctx context.Context, m *api.Client, args []string) error {
		if !force && a.canAsk() {
			if err := a.confirmRunning(ctx, m, args); err != nil {
				return err
			}
		}
		return a.runVerb(ctx, m.VM.Remove, api.VMInput{Identifiers: args, Force: force})
	})
}

// confirmRunning asks before VMs that run are removed. What cannot be found is
// left for the removal to tell.
func (a *app) confirmRunning(ctx context.Context, m *api.Client, ids []string) error {
	var running []string
	for _, id := range ids {
		v, err := m.VM.Get(ctx, api.VMInput{Identifiers: []string{id}})
		if err == nil && v.Status.Active() {
			running = append(running, mvm.Quote(v.Name))
		}
	}
	switch len(running) {
	case 0:
		return nil
	case 1:
		return a.confirm(ctx, running[0]+" is running. Stop it and remove it with its disk?", false)
	}
	return a.confirm(ctx, allOf(running)+" are running. Stop them and remove them with their disks?", false)
}
