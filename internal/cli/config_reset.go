package cli

import (
	"context"
	"fmt"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

type configResetOptions struct{ all, force bool }

// configReset is what reset did, as JSON.
type configReset struct {
	Reset int `json:"reset"` // overrides that went
}

func newConfigReset(a *app) *cobra.Command {
	var o configResetOptions
	cmd := &cobra.Command{
		Use:   "reset [CATEGORY [KEY]]",
		Short: "Return settings to their defaults",
		Long: `Return a setting, a category or with --all everything to the built-in defaults. On
a terminal you are asked before more than one setting changes.`,
		Example:           "  mvm config reset defaults.vm vcpu_count\n  mvm config reset --all --force",
		Args:              needs(0, 2, "a category"),
		ValidArgsFunction: completeSettings(2),
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "all settings")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "ask nothing")
	a.jsonFlag(cmd)
	return a.command(cmd, "Config.Reset", func(ctx context.Context, m *api.Client, args []string) error {
		if o.all == (len(args) > 0) {
			return usagef("name what to reset, or use --all").withHint("usage: %s", usageLine(cmd))
		}
		return o.run(ctx, m, a, args)
	})
}

func (o *configResetOptions) run(ctx context.Context, m *api.Client, a *app, args []string) error {
	in := api.ConfigResetInput{All: o.all}
	what := "all settings"
	if len(args) > 0 {
		args = append(settingArgs(args), "")
		in.Category, in.Key, what = args[0], args[1], "all settings of "+args[0]
	}
	if in.Key == "" && !o.force && a.canAsk() {
		if err := a.confirm(ctx, "Return "+what+" to their defaults?", false); err != nil {
			return err
		}
	}
	n, err := m.Config.Reset(ctx, in)
	if err != nil {
		return err
	}
	if a.out.JSON {
		return a.out.Object(configReset{n})
	}
	return a.out.Line(fmt.Sprintf("%d override(s) reset", n))
}
