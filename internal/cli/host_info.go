package cli

import (
	"context"
	"strconv"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newHostInfo(a *app) *cobra.Command {
	var refresh bool
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Show hardware, limits and how many VMs there is room for",
		Long: `Show the hardware and the limits of this host, and how many VMs of the default size
('mvm config ls defaults.vm') there is room for, with what bounds their number. It is
what was found out the last time; with --refresh the host is looked at again.`,
		Example: "  mvm host info\n  mvm host info --refresh --json",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&refresh, "refresh", false, "look at the host again")
	a.jsonFlag(cmd)
	return a.command(cmd, "Host.Info Host.RefreshCapacity", func(ctx context.Context, m *api.Client, _ []string) error {
		look := m.Host.Info
		if refresh {
			look = m.Host.RefreshCapacity
		}
		info, err := look(ctx)
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(info)
		}
		return a.out.Tree("Host: room for "+strconv.Itoa(info.Capacity.RecommendedMaxVMs)+" VMs", hostInfoTree(info))
	})
}

func hostInfoTree(i *api.HostInfo) []render.Node {
	num := strconv.Itoa
	of := func(used, most int64) string {
		return strconv.FormatInt(used, 10) + " of " + strconv.FormatInt(most, 10)
	}
	bounds := render.Node{Label: "bounded by", Value: i.Capacity.BoundedBy}
	for _, b := range i.Capacity.Bounds {
		bounds.Children = append(bounds.Children, render.Node{Label: b.What, Value: num(b.MaxVMs) + "   (" + b.Detail + ")"})
	}
	return []render.Node{
		{Label: "CPU", Value: render.OrDash(i.CPU.Model), Children: []render.Node{{Label: "cores", Value: num(i.CPU.Cores)}, {Label: "NUMA nodes", Value: num(i.CPU.NUMANodes)}}},
		{Label: "memory", Value: num(i.Memory.AvailableMiB) + " MiB available of " + num(i.Memory.TotalMiB)},
		{Label: "kernel", Value: render.OrDash(i.Kernel)},
		{Label: "limits", Children: []render.Node{
			{Label: "processes and threads", Value: of(i.Limits.PIDUsed, i.Limits.PIDMax)},
			{Label: "open files", Value: of(i.Limits.FDUsed, i.Limits.FDMax)},
		}},
		{Label: "disk", Value: strconv.FormatInt(i.Disk.FreeMiB, 10) + " MiB free for " + i.Disk.CacheDir},
		{Label: "VMs of " + num(i.Capacity.VCPUs) + " vCPU and " + num(i.Capacity.MemMiB) + " MiB", Value: num(i.Capacity.RecommendedMaxVMs) + ", " + num(i.Capacity.RunningVMs) + " of them running"},
		bounds,
		{Label: "looked at", Value: i.DetectedAt},
	}
}
