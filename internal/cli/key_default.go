package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type keyDefaultOptions struct{ clear bool }

func newKeyDefault(a *app) *cobra.Command {
	var o keyDefaultOptions
	cmd := &cobra.Command{
		Use:   "default [KEY...]",
		Short: "Choose the keys that new VMs get",
		Long: `Make these keys the ones that every new VM gets, in place of those before. Without
a key the present ones are listed.`,
		Example:           "  mvm key default work home\n  mvm key default\n  mvm key default --clear",
		Args:              needs(0, -1, ""),
		ValidArgsFunction: a.completeKeys(),
	}
	cmd.Flags().BoolVar(&o.clear, "clear", false, "leave no key a default one")
	a.jsonFlag(cmd)
	return a.command(cmd, "Key.SetDefault Key.GetDefaults Key.ClearDefaults", func(ctx context.Context, m *api.Client, args []string) error {
		if o.clear && len(args) > 0 {
			return usagef("--clear takes no keys, but %s was given", mvm.Quote(args[0])).withHint("leave one out")
		}
		return o.run(ctx, m, a.out, args)
	})
}

func (o *keyDefaultOptions) run(ctx context.Context, m *api.Client, out *render.Output, args []string) error {
	var keys []*mvm.SSHKeyItem
	var err error
	switch {
	case o.clear:
		err = m.Key.ClearDefaults(ctx)
	case len(args) > 0:
		keys, err = m.Key.SetDefault(ctx, api.KeyInput{Identifiers: args})
	default:
		keys, err = m.Key.GetDefaults(ctx)
	}
	if err != nil {
		return err
	}
	if out.JSON {
		return render.List(out, keys)
	}
	for _, k := range keys {
		if err := out.Line(k.Name); err != nil {
			return err
		}
	}
	return nil
}
