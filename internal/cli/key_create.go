package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type keyCreateOptions struct{ input api.KeyCreateInput }

func newKeyCreate(a *app) *cobra.Command {
	var o keyCreateOptions
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an SSH key pair",
		Long: `Make an SSH key pair. The private half is readable by you alone and never leaves
this machine.`,
		Example: `  mvm key create work --default
  mvm key create old --algorithm rsa --bits 4096`,
		Args:              needs(1, 1, "a name for the key"),
		ValidArgsFunction: fixed(),
	}
	f := cmd.Flags()
	f.StringVarP(&o.input.Algorithm, "algorithm", "a", "", "ed25519, rsa or ecdsa (default ed25519)")
	f.IntVar(&o.input.Bits, "bits", 0, "size of an rsa key (default 4096)")
	f.StringVar(&o.input.Comment, "comment", "", "comment in the public key")
	f.StringVar(&o.input.OutputDir, "out", "", "directory for the files; the configuration directory when not given")
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "give it to every new VM")
	f.BoolVarP(&o.input.Overwrite, "force", "f", false, "replace a key of that name")
	a.jsonFlag(cmd)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("algorithm", fixed("ed25519", "rsa", "ecdsa")))
	return undone(a.command(cmd, "Key.Create", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Name = args[0]
		return o.run(ctx, m, a.out)
	}))
}

func (o *keyCreateOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	key, err := m.Key.Create(ctx, o.input)
	if err != nil {
		return err
	}
	if out.JSON {
		return out.Object(key)
	}
	out.Detail(key.Fingerprint + " " + key.PublicKeyPath)
	return out.Line(key.Name)
}
