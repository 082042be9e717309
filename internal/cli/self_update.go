package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

type selfUpdateOptions struct {
	input           api.UpdateInput
	check, rollback bool
}

func newSelfUpdate(a *app) *cobra.Command {
	var o selfUpdateOptions
	cmd := &cobra.Command{
		Use:   "self-update",
		Short: "Replace mvm by another release",
		Long: `Replace this program by the newest release, or by the version named. A release has a
list of checksums that its makers have signed; without a good signature nothing changes.
The program is replaced at once and whole, and the one before is kept for --rollback.
VMs go on running. What was installed as a package is updated as a package.

The key that is trusted is mvm.asc in the directory trusted-keys of the configuration;
the list of releases is the setting settings.update feed_url.`,
		Example: `  mvm self-update --check
  mvm self-update
  mvm self-update --version 1.2.0
  mvm self-update --rollback`,
		Args: noArgs,
	}
	f := cmd.Flags()
	f.BoolVar(&o.check, "check", false, "only tell whether there is a newer one")
	f.BoolVar(&o.rollback, "rollback", false, "put the version before in place again")
	f.StringVar(&o.input.Version, "version", "", "this release, also an older one")
	f.StringVar(&o.input.Feed, "feed", "", "URL of another list of releases, as GitHub's API has it")
	f.BoolVarP(&o.input.Force, "force", "f", false, "ask nothing, and install again what is there already")
	a.jsonFlag(cmd)
	return a.command(cmd, "Update.Apply Update.Check Update.Rollback", func(ctx context.Context, m *api.Client, _ []string) error {
		if o.rollback && (o.check || o.input.Version != "" || o.input.Feed != "") {
			return usagef("--rollback goes with no other flag").withHint("the version before is the one that is kept beside the program")
		}
		return o.run(ctx, m, a)
	})
}

func (o *selfUpdateOptions) run(ctx context.Context, m *api.Client, a *app) error {
	if o.rollback {
		res, err := m.Update.Rollback(ctx)
		return o.tell(a, res, err)
	}
	res, err := m.Update.Check(ctx, o.input)
	if err != nil || o.check || !res.Available && !o.input.Force {
		return o.tell(a, res, err)
	}
	if !o.input.Force && a.canAsk() {
		if err := a.confirm(ctx, "Replace mvm "+res.Current+" at "+res.Path+" by "+res.Version+"?", true); err != nil {
			return err
		}
	}
	o.input.Version = res.Version // the one that was agreed to
	p := a.out.Progress()
	res, err = m.Update.Apply(ctx, o.input, api.OnProgress(p.Show))
	p.Done()
	return o.tell(a, res, err)
}

func (o *selfUpdateOptions) tell(a *app, res *api.UpdateResult, err error) error {
	if err != nil {
		return err
	}
	if a.out.JSON {
		return a.out.Object(res)
	}
	switch {
	case res.Updated:
		return a.out.Line("mvm " + res.Version)
	case res.Available:
		return a.out.Line("mvm " + res.Version + " is there; this is " + res.Current)
	}
	return a.out.Line("mvm " + res.Current + " is the newest")
}
