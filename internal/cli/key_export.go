package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type keyExportOptions struct{ force bool }

func newKeyExport(a *app) *cobra.Command {
	var o keyExportOptions
	cmd := &cobra.Command{
		Use:   "export KEY [DIRECTORY]",
		Short: "Write a key pair into a directory",
		Long: `Write both halves of a key as NAME and NAME.pub into a directory, the present one
if none is named. The private half can be read by you alone.`,
		Example: "  mvm key export work ~/.ssh",
		Args:    needs(1, 2, "a key"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return a.completeKeys()(cmd, args, typed)
		},
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "replace files that are there")
	a.jsonFlag(cmd)
	return a.command(cmd, "Key.Export", func(ctx context.Context, m *api.Client, args []string) error {
		directory := ""
		if len(args) > 1 {
			directory = args[1]
		}
		return o.run(ctx, m, a.out, args[0], directory)
	})
}

func (o *keyExportOptions) run(ctx context.Context, m *api.Client, out *render.Output, key, directory string) error {
	files, err := m.Key.Export(ctx, api.KeyInput{Identifiers: []string{key}}, directory, o.force)
	if err != nil {
		return err
	}
	if out.JSON {
		return out.Object(files)
	}
	if files.PrivateKeyPath == nil {
		out.Warn("the private half of this key is not on this host")
	} else if err := out.Line(*files.PrivateKeyPath); err != nil {
		return err
	}
	return out.Line(files.PublicKeyPath)
}
