package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type initOptions struct {
	nonInteractive bool
	input          api.InitInput
}

func newInit(a *app) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Set this machine up for VMs",
		Long: `Set this machine up: cache directory and database, host settings, default
network and SSH key, and look which hypervisor works. What is there already is
left as it is, so that init can be run again at any time.`,
		Example: `  mvm init
  mvm init --non-interactive`,
		Args: noArgs,
	}
	f := cmd.Flags()
	f.BoolVar(&o.nonInteractive, "non-interactive", false, "ask nothing")
	f.BoolVar(&o.input.SkipHost, "skip-host", false, "leave the host's settings alone")
	f.BoolVar(&o.input.SkipNetwork, "skip-network", false, "make no default network")
	a.jsonFlag(cmd)
	return a.command(cmd, "Init.Run", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a)
	})
}

func (o *initOptions) run(ctx context.Context, m *api.Client, a *app) error {
	if !o.nonInteractive && a.canAsk() {
		a.out.Notice("mvm keeps everything in " + m.CacheDir() + ".")
		if !o.input.SkipHost || !o.input.SkipNetwork {
			a.out.Notice("It makes the default network on this host: a bridge, firewall rules of its own and IP forwarding.")
		}
		if err := a.confirm(ctx, "Go on?", true); err != nil {
			return err
		}
	}
	p := a.out.Progress()
	res, err := m.Init.Run(ctx, o.input, api.OnProgress(p.Show))
	p.Done()
	if err != nil {
		return err
	}
	if a.out.JSON {
		return a.out.Object(res)
	}
	t := render.Table{Columns: []render.Column{{Head: "STEP", Keep: true}, {Head: "STATE", Keep: true}, {Head: "DETAIL"}}}
	for _, s := range res.Steps {
		state := render.Cell{Text: "as it was", Tone: render.ToneMuted}
		if s.Done {
			state = render.Cell{Text: "done", Tone: render.ToneGood}
		}
		t.Rows = append(t.Rows, []render.Cell{{Text: s.Name}, state, {Text: s.Detail}})
	}
	if err := a.out.Table(t); err != nil {
		return err
	}
	if len(res.Next) > 0 {
		a.out.Notice("next:")
		for _, n := range res.Next {
			a.out.Notice("  " + n)
		}
	}
	return nil
}
