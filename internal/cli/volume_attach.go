package cli

import (
	"context"
	"errors"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type volumeAttachOptions struct {
	readOnly bool
	mount    string
}

func newVolumeAttach(a *app) *cobra.Command {
	var o volumeAttachOptions
	cmd := &cobra.Command{
		Use:   "attach VM VOLUME[:ro][:/MOUNT/POINT]",
		Short: "Give a VM a volume",
		Long: `Give a VM a volume. A running VM gets it at once where its hypervisor can; else, and
when it is stopped, it has the volume from its next start on. With a mount point the
guest mounts it there, now and at each start.`,
		Example: `  mvm volume attach web data
  mvm volume attach web data:/srv
  mvm volume attach web models --ro --mount /srv/models`,
		Args: needs(2, 2, "a VM and a volume"),
	}
	cmd.Flags().BoolVar(&o.readOnly, "read-only", false, "the VM must not write to it")
	cmd.Flags().BoolVar(&o.readOnly, "ro", false, "the same as --read-only")
	cmd.Flags().StringVar(&o.mount, "mount", "", "where the guest mounts it, such as /srv")
	cmd.Flags().Lookup("ro").Hidden = true
	a.jsonFlag(cmd)
	cmd.ValidArgsFunction = a.completeVMAndVolume()
	return a.command(cmd, "VM.AttachVolume", func(ctx context.Context, m *api.Client, args []string) error {
		res, err := m.VM.AttachVolume(ctx, api.VMInput{Identifiers: args[:1]}, o.spec(args[1]))
		return errors.Join(err, a.volumeChange(res))
	})
}

// spec adds what the flags say to the volume's name.
func (o *volumeAttachOptions) spec(volume string) string {
	if o.readOnly {
		volume += ":ro"
	}
	if o.mount != "" {
		volume += ":" + o.mount
	}
	return volume
}

// volumeChange prints what was done; res is nil when nothing was.
func (a *app) volumeChange(res *api.VMVolumeChange) error {
	if res == nil {
		return nil
	}
	if a.out.JSON {
		return a.out.Object(res)
	}
	for _, w := range res.Warnings {
		a.out.Notice(w)
	}
	detail := render.OrDash(res.Device)
	if res.Attachment.MountPoint != "" {
		detail += " at " + res.Attachment.MountPoint
	}
	a.out.Detail(detail)
	return a.out.Line(res.Volume.Name)
}

// completeVMAndVolume completes a VM, then a volume.
func (a *app) completeVMAndVolume() completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeVMs(1)(cmd, args, typed)
		}
		return a.completeVolumes(2)(cmd, args, typed)
	}
}
