package cli

import (
	"context"
	"slices"

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
	return a.command(cmd, "VM.ListAll Image.ListAll Kernel.ListAll Network.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
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
	return a.command(cmd, "VM.ListAll Image.ListAll Kernel.ListAll Network.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
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
	if err := nameRelations(ctx, m, vms, o.long); err != nil {
		return err
	}
	return out.Table(vmTable(out, vms, o.long))
}

// nameRelations fills in what VMs are made of, where the list has only ids of it.
func nameRelations(ctx context.Context, m *api.Client, vms []*mvm.VMInstanceItem, networks bool) error {
	if len(vms) == 0 {
		return nil
	}
	images, err := m.Image.ListAll(ctx)
	if err != nil {
		return err
	}
	kernels, err := m.Kernel.ListAll(ctx)
	if err != nil {
		return err
	}
	var nets []*mvm.NetworkItem
	if networks {
		if nets, err = m.Network.ListAll(ctx); err != nil {
			return err
		}
	}
	for _, v := range vms {
		fill(&v.Image, images, func(i *mvm.ImageItem) bool { return i.ID == v.ImageID })
		fill(&v.Kernel, kernels, func(k *mvm.KernelItem) bool { return k.ID == v.KernelID })
		fill(&v.Network, nets, func(n *mvm.NetworkItem) bool { return n.ID == v.NetworkID })
	}
	return nil
}

// fill sets an unset relation to the first item that is meant.
func fill[T any](to **T, items []*T, meant func(*T) bool) {
	if *to != nil {
		return
	}
	if i := slices.IndexFunc(items, meant); i >= 0 {
		*to = items[i]
	}
}
