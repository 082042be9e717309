package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) binaryCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "binary",
		Aliases: []string{"bin"},
		Short:   "Manage VMM binaries",
		Long: `Manage the Firecracker releases in the cache. QEMU comes with the distribution;
'mvm host status' shows both.`,
		Example: "  mvm binary pull firecracker\n  mvm binary ls",
	}, newBinaryPull(a), newBinaryList(a))
}

func newBinaryPull(a *app) *cobra.Command {
	var in api.BinaryPullInput
	cmd := &cobra.Command{
		Use:   "pull [TYPE[:VERSION]]",
		Short: "Download a Firecracker release",
		Long: `Download a Firecracker release with its jailer, check it against its published
checksum, and register both. Needs the internet, or MVM_ASSET_MIRROR.`,
		Example:           "  mvm binary pull firecracker\n  mvm binary pull firecracker:1.16.1 --default",
		Args:              needs(0, 1, ""),
		ValidArgsFunction: fixed("firecracker"),
	}
	f := cmd.Flags()
	f.StringVar(&in.Version, "version", "", "version; the one in the settings when not given")
	f.BoolVarP(&in.SetDefault, "default", "d", false, "make it the default")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Binary.Pull", func(ctx context.Context, m *api.Client, args []string) (err error) {
		if in.Name, in.Version, err = typeVersion(args, "firecracker", in.Version); err != nil {
			return err
		}
		p := a.out.Progress()
		items, err := m.Binary.Pull(ctx, in, api.OnProgress(p.Show))
		p.Done()
		if err != nil {
			return err
		}
		return printBinaries(a.out, items, false)
	}))
}

func newBinaryList(a *app) *cobra.Command {
	var long bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List VMM binaries",
		Long:    "List the VMM binaries in the cache.",
		Example: "  mvm binary ls\n  mvm binary ls --json",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&long, "long", false, "also ids and paths")
	a.jsonFlag(cmd)
	return a.command(cmd, "Binary.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		items, err := m.Binary.ListAll(ctx)
		if err != nil {
			return err
		}
		return printBinaries(a.out, items, long)
	})
}

func printBinaries(out *render.Output, items []*mvm.BinaryItem, long bool) error {
	if out.JSON {
		return render.List(out, items)
	}
	t := render.Table{Columns: []render.Column{{Head: "BINARY", Keep: true}, {Head: "DEFAULT"}, {Head: "AGE", Right: true, Keep: true}}}
	if long {
		t.Columns = append(t.Columns, render.Column{Head: "ID", Keep: true}, render.Column{Head: "PATH"})
	}
	for _, b := range items {
		row := []render.Cell{{Text: b.Name + ":" + b.Version}, mark(b.IsDefault, b.IsPresent), {Text: out.Age(b.CreatedAt)}}
		if long {
			row = append(row, render.Text(render.ShortID(b.ID), b.Path)...)
		}
		t.Rows = append(t.Rows, row)
	}
	return out.Table(t)
}
