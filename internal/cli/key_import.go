package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type keyImportOptions struct{ input api.KeyAddInput }

func newKeyImport(a *app) *cobra.Command {
	var o keyImportOptions
	cmd := &cobra.Command{
		Use:     "import NAME PATH",
		Aliases: []string{"add"},
		Short:   "Take over a public key",
		Long: `Copy a public key, a .pub file, under a name. A private key beside it stays where
it is; it is used to log in when it belongs to the public one and has no passphrase.`,
		Example: "  mvm key import mine ~/.ssh/id_ed25519.pub --default",
		Args:    needs(2, 2, "a name and the path of a .pub file"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"pub"}, cobra.ShellCompDirectiveFilterFileExt
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "give it to every new VM")
	f.BoolVarP(&o.input.Overwrite, "force", "f", false, "replace a key of that name")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Key.Add", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Name, o.input.PublicKeyPath = args[0], args[1]
		return o.run(ctx, m, a.out)
	}))
}

func (o *keyImportOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	key, err := m.Key.Add(ctx, o.input)
	if err != nil {
		return err
	}
	if out.JSON {
		return out.Object(key)
	}
	out.Detail(key.Fingerprint + " " + key.PublicKeyPath)
	return out.Line(key.Name)
}
