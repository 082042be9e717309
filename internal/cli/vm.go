package cli

import (
	"context"
	"strconv"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) vmCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "vm",
		Short: "Make, run and remove VMs",
		Long: `Make, run and remove VMs. A VM is selected by name, by IPv4 address, by MAC address
or by id prefix.`,
		Example: "  mvm vm create web --wait\n  mvm vm ls\n  mvm vm rm web",
	},
		newVMCreate(a), newVMList(a), newVMPs(a), newVMInspect(a), newVMStart(a), newVMStop(a), newVMPause(a),
		newVMResume(a), newVMReboot(a), newVMUpdate(a), newVMExport(a), newVMImport(a), newVMSnapshot(a), newVMLoad(a), newVMRemove(a), newVMWait(a), newVMAutostart(a))
}

func vmName(v *mvm.VMInstanceItem) string { return v.Name }

type (
	vmBatch = mvm.Batch[*mvm.VMInstanceItem]
	vmEntry = mvm.BatchEntry[*mvm.VMInstanceItem]
)

// vmVerb is the shape of the operations that are done to several VMs.
type vmVerb func(context.Context, api.VMInput, ...api.Option) (vmBatch, error)

// runVerb does a verb to VMs and prints the names of those it was done to.
func (a *app) runVerb(ctx context.Context, verb vmVerb, in api.VMInput) error {
	p := a.out.Progress()
	batch, err := verb(ctx, in, api.OnProgress(p.Show))
	took := p.Done()
	if len(batch.Items()) > 0 {
		a.out.Detail("took " + render.Took(took))
	}
	return printBatch(a.out, batch, vmName, err)
}

func vmTable(o *render.Output, vms []*mvm.VMInstanceItem, long bool) render.Table {
	t := render.Table{Columns: []render.Column{
		{Head: "NAME", Keep: true}, {Head: "STATUS", Keep: true}, {Head: "IMAGE"}, {Head: "KERNEL"}, {Head: "VCPU", Right: true},
		{Head: "MEM", Right: true, Keep: true}, {Head: "IPV4", Keep: true}, {Head: "HYPERVISOR"}, {Head: "AGE", Right: true, Keep: true},
	}}
	if long {
		for _, head := range []string{"ID", "MAC", "NETWORK", "TAP", "PID"} {
			t.Columns = append(t.Columns, render.Column{Head: head, Right: head == "PID"})
		}
	}
	for _, v := range vms {
		row := []render.Cell{
			{Text: v.Name}, {Text: string(v.Status), Tone: statusTone(v.Status)}, {Text: vmImage(v)}, {Text: vmKernel(v)},
			{Text: strconv.Itoa(v.VCPUCount)}, {Text: render.MiB(v.MemSizeMiB)}, {Text: render.OrDash(v.IPv4)},
			{Text: vmHypervisor(v)}, {Text: o.Age(v.CreatedAt)},
		}
		if long {
			row = append(row, render.Text(v.ID, render.OrDash(v.MAC), vmNetwork(v), render.OrDash(v.TapDevice), vmPID(v))...)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func statusTone(s mvm.VMStatus) render.Tone {
	switch s {
	case mvm.StatusRunning:
		return render.ToneGood
	case mvm.StatusCrashed, mvm.StatusError:
		return render.ToneBad
	case mvm.StatusStopped:
		return render.ToneMuted
	}
	return render.ToneWarn
}

func vmImage(v *mvm.VMInstanceItem) string {
	if v.Image != nil {
		return imageRef(v.Image)
	}
	return render.OrDash(render.ShortID(v.ImageID))
}

func vmKernel(v *mvm.VMInstanceItem) string {
	if v.Kernel != nil {
		return kernelRef(v.Kernel)
	}
	return render.OrDash(render.ShortID(v.KernelID))
}

func vmNetwork(v *mvm.VMInstanceItem) string {
	if v.Network != nil {
		return v.Network.Name
	}
	return render.OrDash(render.ShortID(v.NetworkID))
}

func vmHypervisor(v *mvm.VMInstanceItem) string {
	if v.Hypervisor != "" && v.Accel != "" {
		return v.Hypervisor + "/" + v.Accel
	}
	return render.OrDash(v.Hypervisor)
}

func vmPID(v *mvm.VMInstanceItem) string {
	if v.PID == 0 {
		return "-"
	}
	return strconv.Itoa(v.PID)
}
