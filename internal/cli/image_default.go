package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newImageDefault(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "default IMAGE",
		Short:             "Make an image the default",
		Long:              "Make an image the one that new VMs get when none is named.",
		Example:           "  mvm image default debian:12",
		Args:              needs(1, 1, "an image"),
		ValidArgsFunction: a.completeImages(1),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Image.SetDefault", func(ctx context.Context, m *api.Client, args []string) error {
		item, err := m.Image.SetDefault(ctx, api.ImageInput{Identifiers: args})
		if err != nil {
			return err
		}
		return printImage(a.out, item)
	})
}
