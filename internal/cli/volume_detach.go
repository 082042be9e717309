package cli

import (
	"context"
	"errors"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVolumeDetach(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "detach VM VOLUME",
		Short: "Take a volume from a VM",
		Long: `Take a volume from a VM. In a running guest the agent unmounts it first; while
something there uses it, it stays. Where the hypervisor cannot take a disk out, the VM
has the volume until it ends.`,
		Example: "  mvm volume detach web data\n  mvm volume detach --force web data",
		Args:    needs(2, 2, "a VM and a volume"),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "take it out without asking the guest, which may lose what it has not written")
	a.jsonFlag(cmd)
	cmd.ValidArgsFunction = a.completeVMAndVolume()
	return a.command(cmd, "VM.DetachVolume", func(ctx context.Context, m *api.Client, args []string) error {
		res, err := m.VM.DetachVolume(ctx, api.VMInput{Identifiers: args[:1], Force: force}, args[1])
		return errors.Join(err, a.volumeChange(res))
	})
}
