package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) keyCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "key",
		Short:   "Manage SSH keys",
		Long:    "Manage the SSH keys that VMs are entered with. The default keys go into every new VM.",
		Example: "  mvm key create work --default\n  mvm key ls",
	}, newKeyCreate(a), newKeyImport(a), newKeyList(a), newKeyInspect(a), newKeyDefault(a), newKeyExport(a), newKeyRemove(a))
}

func newKeyList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List SSH keys",
		Long:    "List the SSH keys that can be given to VMs.",
		Example: "  mvm key ls\n  mvm key ls --json",
		Args:    noArgs,
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Key.ListAll", func(ctx context.Context, m *api.Client, _ []string) error {
		keys, err := m.Key.ListAll(ctx)
		if err != nil {
			return err
		}
		if a.out.JSON {
			return render.List(a.out, keys)
		}
		t := render.Table{Columns: []render.Column{
			{Head: "NAME", Keep: true}, {Head: "ALGORITHM"}, {Head: "FINGERPRINT"}, {Head: "COMMENT"}, {Head: "DEFAULT"}, {Head: "AGE", Right: true, Keep: true},
		}}
		for _, k := range keys {
			t.Rows = append(t.Rows, []render.Cell{
				{Text: k.Name}, {Text: k.Algorithm}, {Text: k.Fingerprint}, {Text: render.OrDash(k.Comment)},
				mark(k.IsDefault, k.IsPresent), {Text: a.out.Age(k.CreatedAt)},
			})
		}
		return a.out.Table(t)
	})
}
