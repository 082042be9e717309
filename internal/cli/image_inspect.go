package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newImageInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect IMAGE...",
		Short: "Show all about images",
		Long: `Show all that is known about images: where they came from and how that was checked, what
they take on the disk, compressed and not, and which VMs are made from them. With --json
one image gives an object, several give an array.`,
		Example:           "  mvm image inspect debian:12 --json",
		Args:              needs(1, -1, "an image"),
		ValidArgsFunction: a.completeImages(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Image.Inspect Image.Get", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, *api.ImageInspect, error) {
			res, err := m.Image.Inspect(ctx, api.ImageInput{Identifiers: []string{id}})
			if err != nil {
				return "", nil, err
			}
			return "Image: " + imageRef(res.Image), res, nil
		})
	})
}
