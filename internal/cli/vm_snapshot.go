package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMSnapshot(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot VM MEMORY STATE",
		Short: "Write a VM's memory and state to files",
		Long: `Write memory and state of a VM to two files of your choice, and its disks to a
directory beside the second, STATE.mvm. Nothing is overwritten. To have mvm keep the
files, use 'mvm snapshot create'.`,
		Example: "  mvm vm snapshot web /srv/web.mem /srv/web.state",
		Args:    needs(3, 3, "a VM, a file for the memory and one for the state"),
	}
	cmd.ValidArgsFunction = a.vmThenFiles()
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "VM.Snapshot", func(ctx context.Context, m *api.Client, args []string) error {
		p := a.out.Progress()
		vm, err := m.VM.Snapshot(ctx, api.VMInput{Identifiers: args[:1]}, args[1], args[2], api.OnProgress(p.Show))
		p.Stop()
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(vm)
		}
		return a.out.Line(vm.Name)
	}))
}

func newVMLoad(a *app) *cobra.Command {
	var resume bool
	cmd := &cobra.Command{
		Use:   "load VM MEMORY STATE",
		Short: "Put a VM back to what was written to files",
		Long: `Put a stopped VM back to what 'mvm vm snapshot' wrote: memory, devices and disks.
What it wrote to its disks since is lost. It is paused then, unless --resume is given.`,
		Example: "  mvm vm load web /srv/web.mem /srv/web.state --resume",
		Args:    needs(3, 3, "a VM, the file of the memory and that of the state"),
	}
	cmd.ValidArgsFunction = a.vmThenFiles()
	cmd.Flags().BoolVar(&resume, "resume", false, "have the VM go on at once")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "VM.LoadSnapshot", func(ctx context.Context, m *api.Client, args []string) error {
		p := a.out.Progress()
		vm, err := m.VM.LoadSnapshot(ctx, api.VMInput{Identifiers: args[:1]}, args[1], args[2], resume, api.OnProgress(p.Show))
		p.Stop()
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(vm)
		}
		if !resume {
			a.out.Notice("paused; go on with:  mvm vm resume " + vm.Name)
		}
		return a.out.Line(vm.Name)
	}))
}

// vmThenFiles completes a VM, then files.
func (a *app) vmThenFiles() completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeVMs(1)(cmd, args, typed)
		}
		return nil, cobra.ShellCompDirectiveDefault
	}
}
