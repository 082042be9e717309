package cli

import (
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) kernelCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "kernel",
		Short: "Manage guest kernels",
		Long: `Manage the kernels that VMs boot. A kernel is selected by type:version, by
absolute path, by id prefix, or by its type, which means the newest.`,
		Example: "  mvm kernel pull debian --default\n  mvm kernel ls",
	}, newKernelPull(a), newKernelImport(a), newKernelList(a), newKernelDefault(a), newKernelRemove(a), newKernelInspect(a))
}

// kernelRef is what selects a kernel.
func kernelRef(k *mvm.KernelItem) string { return k.Type + ":" + k.Version }

func kernelTable(o *render.Output, kernels []*mvm.KernelItem, long bool) render.Table {
	t := render.Table{Columns: []render.Column{{Head: "KERNEL", Keep: true}, {Head: "NAME"}, {Head: "ARCH"}, {Head: "DEFAULT"}, {Head: "AGE", Right: true, Keep: true}}}
	if long {
		t.Columns = append(t.Columns, render.Column{Head: "ID", Keep: true}, render.Column{Head: "PATH"})
	}
	for _, k := range kernels {
		row := []render.Cell{{Text: kernelRef(k)}, {Text: k.Name}, {Text: k.Arch}, mark(k.IsDefault, k.IsPresent), {Text: o.Age(k.CreatedAt)}}
		if long {
			row = append(row, render.Text(render.ShortID(k.ID), k.Path)...)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// mark tells the default, and what has lost its file.
func mark(isDefault, isPresent bool) render.Cell {
	switch {
	case !isPresent:
		return render.Cell{Text: "missing", Tone: render.ToneBad}
	case isDefault:
		return render.Cell{Text: "yes", Tone: render.ToneGood}
	}
	return render.Cell{Text: "-", Tone: render.ToneMuted}
}
