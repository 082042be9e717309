package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newConfigSet(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set CATEGORY KEY VALUE",
		Short: "Change a setting",
		Long: `Change a setting for all commands from now on. VMs that exist keep what they were
made with. The value is checked; "" empties a text.`,
		Example: "  mvm config set defaults.vm mem_size_mib 1024\n  mvm config set defaults.vm boot_args \"\"",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] != "" {
				args = settingArgs(args)
			}
			if len(args) == 3 && args[2] == "" { // an empty value is one
				args = args[:2]
				return needs(2, 2, "a category and a key")(cmd, args)
			}
			return needs(3, 3, "a category, a key and a value")(cmd, args)
		},
		ValidArgsFunction: completeSettings(3),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Config.Set", func(ctx context.Context, m *api.Client, args []string) error {
		args = settingArgs(args)
		e, err := m.Config.Set(ctx, args[0], args[1], args[2])
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(e)
		}
		return a.out.Line(settingLine(*e))
	})
}
