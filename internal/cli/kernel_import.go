package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type kernelImportOptions struct{ input api.KernelImportInput }

func newKernelImport(a *app) *cobra.Command {
	var o kernelImportOptions
	cmd := &cobra.Command{
		Use:   "import NAME PATH",
		Short: "Take over a kernel file",
		Long: `Copy a kernel into the cache under a name. The file has to be a kernel that this
machine can boot: an uncompressed ELF image (vmlinux) or a bzImage. One that is built
as a guest of a paravirtual KVM (CONFIG_PVM_GUEST) has KVM also on hosts without
hardware virtualisation; it is known by the configuration in it, or by --pvm-guest.`,
		Example: "  mvm kernel import mine ./vmlinux --version 6.1.100",
		Args:    needs(2, 2, "a name and the path of a kernel"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.input.Version, "version", "", "version; what the file says when not given")
	f.BoolVar(&o.input.PVMGuest, "pvm-guest", false, "it boots where KVM is paravirtual (kvm_pvm), though it does not say so itself")
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "make it the default kernel")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Kernel.Import", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Name, o.input.SourcePath = args[0], args[1]
		return o.run(ctx, m, a.out)
	}))
}

func (o *kernelImportOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	item, err := m.Kernel.Import(ctx, o.input, api.OnProgress(p.Show))
	p.Done()
	if err != nil {
		return err
	}
	if out.JSON {
		return out.Object(item)
	}
	return out.Line(kernelRef(item))
}
