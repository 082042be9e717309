package cli

import (
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) imageCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "image",
		Aliases: []string{"img"},
		Short:   "Manage root disk images",
		Long: `Manage the images that VMs' disks are made from. An image is selected by
type:version, by its type, which means the newest, by name or by id prefix.`,
		Example: "  mvm image build debian:12 --default\n  mvm image ls",
	}, newImageBuild(a), newImagePull(a), newImageImport(a), newImageWarm(a), newImageList(a), newImageDefault(a), newImageRemove(a), newImageInspect(a))
}

// imageRef is what selects an image.
func imageRef(i *mvm.ImageItem) string { return i.Type + ":" + i.Version }

func imageTable(o *render.Output, images []*mvm.ImageItem, long bool) render.Table {
	t := render.Table{Columns: []render.Column{
		{Head: "IMAGE", Keep: true}, {Head: "NAME"}, {Head: "FS"}, {Head: "SIZE", Right: true, Keep: true},
		{Head: "MIN DISK", Right: true, Keep: true}, {Head: "DEFAULT"}, {Head: "AGE", Right: true, Keep: true},
	}}
	if long {
		t.Columns = append(t.Columns, render.Column{Head: "ARCH"}, render.Column{Head: "ID", Keep: true}, render.Column{Head: "PATH"})
	}
	for _, i := range images {
		row := []render.Cell{
			{Text: imageRef(i)}, {Text: i.Name}, {Text: i.FSType}, {Text: render.Size(i.OriginalSize)},
			{Text: render.MiB(i.MinimumRootfsSizeMiB)}, mark(i.IsDefault, i.IsPresent), {Text: o.Age(i.CreatedAt)},
		}
		if long {
			row = append(row, render.Text(i.Arch, render.ShortID(i.ID), i.Path)...)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}
