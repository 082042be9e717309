package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type vmListOptions struct {
	long   bool
	status []mvm.VMStatus // none: all
}

func newVMList(a *app) *cobra.Command {
	var o vmListOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List VMs",
		Long:    "List all VMs, whether they run or not, as they are found to be now.",
		Example: "  mvm vm ls\n  mvm vm ls --json",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.long, "long", false, "also ids, MAC addresses, networks, taps and process ids")
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func newVMPs(a *app) *cobra.Command {
	o := vmListOptions{status: []mvm.VMStatus{mvm.StatusRunning}}
	cmd := &cobra.Command{
		Use:     "ps",
		Short:   "List running VMs",
		Long:    "List the VMs that run. mvm vm ls lists all.",
		Example: "  mvm vm ps\n  mvm vm ps --json",
		Args:    noArgs,
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func (o *vmListOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	vms, err := m.VM.ListAll(ctx, o.status...)
	if err != nil {
		return err
	}
	if out.JSON {
		return render.List(out, vms)
	}
	return out.Table(vmTable(out, vms, o.long))
}
