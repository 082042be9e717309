package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newImageWarm(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "warm [IMAGE...]",
		Short: "Have images ready for VMs",
		Long: `Have images ready, so that the next VM does not wait: unpacked, read into the host's
memory as far as there is room, and where VMs have raw disks, with a copy that the next
one takes. Without a name it is the default image. The files are printed.

The host's memory forgets what was not read for a while. With the setting
defaults.image warm_in tmpfs, a copy of the image stays there until the image is removed,
the host restarts, or warm runs with the setting disk again: raw disks are made of it
wherever the file system cannot share blocks.`,
		Example:           "  mvm image warm\n  mvm image warm debian:12\n  mvm image warm --all",
		Args:              needs(0, -1, ""),
		ValidArgsFunction: a.completeImages(0),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "every image")
	a.jsonFlag(cmd)
	return a.command(cmd, "Image.Warm", func(ctx context.Context, m *api.Client, args []string) error {
		p := a.out.Progress()
		paths, err := m.Image.Warm(ctx, api.ImageInput{Identifiers: args}, all, api.OnProgress(p.Show))
		p.Done()
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(paths)
		}
		for _, path := range paths {
			if err := a.out.Line(path); err != nil {
				return err
			}
		}
		return nil
	})
}
