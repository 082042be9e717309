package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

// imageInspect is what inspect shows of an image.
type imageInspect struct {
	Image *mvm.ImageItem `json:"image"`
}

func newImageInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "inspect IMAGE...",
		Short:             "Show all about images",
		Long:              "Show all that is known about images. With --json one image gives an object, several give an array.",
		Example:           "  mvm image inspect debian:12 --json",
		Args:              needs(1, -1, "an image"),
		ValidArgsFunction: a.completeImages(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Image.Get", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, imageInspect, error) {
			item, err := m.Image.Get(ctx, api.ImageInput{Identifiers: []string{id}})
			if err != nil {
				return "", imageInspect{}, err
			}
			return "Image: " + imageRef(item), imageInspect{item}, nil
		})
	})
}
