package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type configListOptions struct{ long bool }

func newConfigList(a *app) *cobra.Command {
	var o configListOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List all settings",
		Long: `List all settings with their values, a category after the other. With --long or
--json also what values they take, and where the present one comes from.`,
		Example: "  mvm config ls\n  mvm config ls --long",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.long, "long", false, "also ranges, defaults and where values come from")
	a.jsonFlag(cmd)
	return a.command(cmd, "Config.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func (o *configListOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	entries, err := m.Config.ListAll(ctx)
	if err != nil {
		return err
	}
	if out.JSON {
		return render.List(out, entries)
	}
	category := ""
	for _, e := range entries {
		if e.Category != category {
			category = e.Category
			if err := out.Line("[" + category + "]"); err != nil {
				return err
			}
		}
		about := "type: " + e.Type
		if o.long {
			about = origin(e)
		}
		if err := out.Line(e.Key + " = " + e.Text() + " (" + about + ")"); err != nil {
			return err
		}
	}
	return nil
}
