package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type imageListOptions struct {
	long    bool
	typ     string
	remote  bool
	noCache bool
}

func newImageList(a *app) *cobra.Command {
	var o imageListOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images",
		Long: `List the images in the cache, or with --remote those that can be pulled: of each type
the newest versions, as many as the setting defaults.image remote_list_limit says.`,
		Example: "  mvm image ls\n  mvm image ls --type debian --json\n  mvm image ls --remote --type ubuntu",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.long, "long", false, "also architectures, ids and paths")
	cmd.Flags().StringVar(&o.typ, "type", "", "only images of this type")
	cmd.Flags().BoolVarP(&o.remote, "remote", "r", false, "what can be pulled")
	cmd.Flags().BoolVar(&o.noCache, "no-cache", false, "with --remote: ask, whatever was kept from before")
	a.jsonFlag(cmd)
	return a.command(cmd, "Image.ListAll Image.ListRemote", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func (o *imageListOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	if o.remote {
		return o.runRemote(ctx, m, out)
	}
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

func (o *imageListOptions) runRemote(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	all, err := m.Image.ListRemote(ctx, api.ImageRemoteInput{Type: o.typ, NoCache: o.noCache}, api.OnProgress(p.Show))
	p.Done()
	if err != nil {
		return err
	}
	if out.JSON {
		return render.List(out, all)
	}
	t := render.Table{Columns: []render.Column{{Head: "IMAGE", Keep: true}, {Head: "NAME"}, {Head: "ARCH"}, {Head: "HERE"}}}
	for _, v := range all {
		here := ""
		if v.IsPresent {
			here = "yes"
		}
		t.Rows = append(t.Rows, render.Text(v.Type+":"+v.Version, v.Name, v.Arch, here))
	}
	return out.Table(t)
}
