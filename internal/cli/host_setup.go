package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newHostInit(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Set this host up, once, as root",
		Long: `Set this host up: IP forwarding, now and at boot; the kernel modules of KVM; the group
mvm, whose members may make networks and VMs without being root; the helper that does
it for them, by way of sudo; a boot unit that puts networks back before VMs start,
where systemd is; and the default network. Every change is printed with its old and
its new value. What is right already stays, so that it may be run again at any time.
'mvm host reset' takes everything back.`,
		Example: "  sudo mvm host init\n  sudo usermod -aG mvm alice      # who may make networks and VMs",
		Args:    noArgs,
	}
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Host.Init", func(ctx context.Context, m *api.Client, _ []string) error {
		p := a.out.Progress()
		res, err := m.Host.Init(ctx, api.OnProgress(p.Show))
		p.Done()
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(res)
		}
		if len(res.Changes) == 0 {
			a.out.Notice("This host is set up already; nothing was changed.")
		}
		if err := a.hostChanges(res.Changes); err != nil {
			return err
		}
		for _, s := range res.Skipped {
			a.out.Notice("left out: " + s.What + "; " + s.Hint)
		}
		for _, n := range res.Next {
			a.out.Notice("next: " + n + "   (it takes effect with the next login)")
		}
		return nil
	}))
}

// hostChanges prints what was changed of the host, with old and new values.
func (a *app) hostChanges(changes []api.HostChange) error {
	if len(changes) == 0 {
		return nil
	}
	t := render.Table{Columns: []render.Column{{Head: "WHAT", Keep: true}, {Head: "WAS"}, {Head: "IS"}}}
	for _, ch := range changes {
		t.Rows = append(t.Rows, []render.Cell{{Text: ch.What}, {Text: render.OrDash(ch.Old)}, {Text: render.OrDash(ch.New)}})
	}
	return a.out.Table(t)
}

// hostTakesBack is a command that takes something back from the host.
type hostTakesBack struct {
	input api.HostCleanInput
	ask   string
	do    func(ctx context.Context, m *api.Client, in api.HostCleanInput) (*api.HostCleanResult, error)
}

func (o *hostTakesBack) command(a *app, cmd *cobra.Command, uses string) *cobra.Command {
	cmd.Args = noArgs
	cmd.Flags().BoolVarP(&o.input.Force, "force", "f", false, "ask nothing; also while VMs run, which then have no network")
	a.jsonFlag(cmd)
	return a.command(cmd, uses, func(ctx context.Context, m *api.Client, _ []string) error {
		if !o.input.Force && a.canAsk() {
			if err := a.confirm(ctx, o.ask, false); err != nil {
				return err
			}
		}
		res, err := o.do(ctx, m, o.input)
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(res)
		}
		if len(res.Changes) == 0 && len(res.Left) == 0 {
			a.out.Notice("There is nothing of mvm's on this host.")
		}
		for _, p := range res.Left {
			a.out.Notice(p.What + "; " + p.Hint)
		}
		return a.hostChanges(res.Changes)
	})
}

func newHostClean(a *app) *cobra.Command {
	o := &hostTakesBack{
		ask: "Remove all bridges, taps and rules of mvm from this host?",
		do: func(ctx context.Context, m *api.Client, in api.HostCleanInput) (*api.HostCleanResult, error) {
			return m.Host.Clean(ctx, in)
		},
	}
	return o.command(a, &cobra.Command{
		Use:   "clean",
		Short: "Remove all networking of mvm from this host",
		Long: `Remove all bridges, taps and firewall rules of mvm from this host, those of other users
too. Networks stay known: 'mvm network sync', or the next VM, brings them up again.
Settings of the host, the group and the helper stay; see 'mvm host reset'. It is
refused while VMs run.`,
		Example: "  sudo mvm host clean\n  sudo mvm host clean --force",
	}, "Host.Clean")
}

func newHostReset(a *app) *cobra.Command {
	o := &hostTakesBack{
		ask: "Remove the networking of mvm, its group, its helper and its settings from this host?",
		do: func(ctx context.Context, m *api.Client, in api.HostCleanInput) (*api.HostCleanResult, error) {
			return m.Host.Reset(ctx, in)
		},
	}
	return o.command(a, &cobra.Command{
		Use:   "reset",
		Short: "Make this host what it was before 'mvm host init'",
		Long: `Take back all that 'mvm host init' has changed: networking as with 'mvm host clean', and
the settings, files, group and helper, to the values that they had before. What
somebody has changed since is left as it is, and told. VMs, images and networks stay
in the cache. It is refused while VMs run.`,
		Example: "  sudo mvm host reset\n  sudo mvm host reset --force",
	}, "Host.Reset")
}
