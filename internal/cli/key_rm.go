package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newKeyRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm KEY...",
		Aliases: []string{"remove", "delete", "del"},
		Short:   "Remove SSH keys",
		Long: `Remove SSH keys, with the files that mvm made; files elsewhere stay. A key that VMs
were created with is kept unless --force is given: it may be the only way in.
On a terminal you are asked before a private key is removed.`,
		Example:           "  mvm key rm old\n  mvm key rm --force work",
		Args:              needs(1, -1, "a key"),
		ValidArgsFunction: a.completeKeys(),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "ask nothing, and remove keys of VMs too")
	a.jsonFlag(cmd)
	return a.command(cmd, "Key.Remove Key.Get", func(ctx context.Context, m *api.Client, args []string) error {
		if !force && a.canAsk() {
			if err := a.confirmKeys(ctx, m, args); err != nil {
				return err
			}
		}
		batch, err := m.Key.Remove(ctx, api.KeyInput{Identifiers: args}, force)
		return printBatch(a.out, batch, func(k *mvm.SSHKeyItem) string { return k.Name }, err)
	})
}

// confirmKeys asks before private keys are removed. What cannot be found is left
// for the removal to tell.
func (a *app) confirmKeys(ctx context.Context, m *api.Client, ids []string) error {
	var private []string
	for _, id := range ids {
		k, err := m.Key.Get(ctx, api.KeyInput{Identifiers: []string{id}})
		if err == nil && k.PrivateKeyPath != nil {
			private = append(private, mvm.Quote(k.Name))
		}
	}
	if len(private) == 0 {
		return nil
	}
	return a.confirm(ctx, "Remove "+allOf(private)+"? What was made by mvm cannot be had again.", false)
}
