package cli

import (
	"context"
	"fmt"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type cpOptions struct{ input api.CPInput }

func newCP(a *app) *cobra.Command {
	var o cpOptions
	cmd := &cobra.Command{
		Use:   "cp SRC... DST",
		Short: "Copy files between host and VMs",
		Long: `Copy files and directories from the host into a VM, out of one, or from VM to VM. A
place in a VM is VM:/path; a relative path begins at the user's home there. Modes,
times and links are kept, from VM to VM also owners.

A destination that is a directory is copied into. Files that exist are in the way
unless -f is given. What is copied is put in place at the end: a transfer that fails
leaves the destination as it was.

It goes through the agent in the VM, and by SSH over the network, with sh and tar there,
where the VM has none.`,
		Example: `  mvm cp notes.txt web:/root/
  mvm cp -f site web:/srv
  mvm cp web:/var/log/syslog .
  mvm cp web:/srv/data db:/srv/`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return usagef("%q needs a destination", cmd.CommandPath()).withHint("usage: %s", usageLine(cmd))
			}
			return needs(2, -1, "a source and a destination")(cmd, args)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.input.Force, "force", "f", false, "replace files that exist")
	f.StringVarP(&o.input.User, "user", "u", "", "user in the VM (default the one that it was made with)")
	f.StringVar(&o.input.Key, "key", "", "private key for VMs without the agent: a path, or the name of a key")
	f.BoolVar(&o.input.NoSync, "no-sync", false, "do not have the VM write its disks out afterwards")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "CP.Copy", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Sources, o.input.Dst = args[:len(args)-1], args[len(args)-1]
		p := a.out.Progress()
		res, err := m.CP.Copy(ctx, o.input, api.OnProgress(p.Show))
		took := p.Done()
		for _, s := range res.Skipped {
			a.out.Warn(mvm.Quote(s) + " is neither file, directory nor link and was skipped")
		}
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(res)
		}
		a.out.Detail(fmt.Sprintf("%d files, %s in %s", res.Files, render.Size(res.Bytes), render.Took(took)))
		return nil
	}))
}
