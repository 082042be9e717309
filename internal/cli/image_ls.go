package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type imageListOptions struct {
	long bool
	typ  string
}

func newImageList(a *app) *cobra.Command {
	var o imageListOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images",
		Long:    "List the images in the cache.",
		Example: "  mvm image ls\n  mvm image ls --type debian --json",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.long, "long", false, "also architectures, ids and paths")
	cmd.Flags().StringVar(&o.typ, "type", "", "only images of this type")
	a.jsonFlag(cmd)
	return a.command(cmd, "Image.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func (o *imageListOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	all, err := m.Image.ListAll(ctx)
	if err != nil {
		return err
	}
	var images []*mvm.ImageItem
	for _, i := range all {
		if o.typ == "" || i.Type == o.typ {
			images = append(images, i)
		}
	}
	if out.JSON {
		return render.List(out, images)
	}
	return out.Table(imageTable(out, images, o.long))
}
