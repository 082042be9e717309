package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newImageRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm IMAGE...",
		Aliases:           []string{"remove", "delete", "del"},
		Short:             "Remove images",
		Long:              "Remove images from the cache. One that VMs use is kept unless --force is given.",
		Example:           "  mvm image rm tiny",
		Args:              needs(1, -1, "an image"),
		ValidArgsFunction: a.completeImages(0),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when VMs use it")
	a.jsonFlag(cmd)
	return a.command(cmd, "Image.Remove", func(ctx context.Context, m *api.Client, args []string) error {
		batch, err := m.Image.Remove(ctx, api.ImageInput{Identifiers: args}, force)
		return printBatch(a.out, batch, imageRef, err)
	})
}
