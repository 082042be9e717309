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
		Long: `Set this machine up: cache directory and database, SSH key, the host's settings as
'mvm host init' does (as root), Firecracker where KVM works, and the default network.
On a terminal you are asked about each part that is not there yet, and for a kernel
and an image to begin with. What is there stays as it is, so that a run that stopped
is gone on with by the next one.`,
		Example: `  mvm init
  mvm init --non-interactive
  mvm init --non-interactive --skip-host --kernel debian --image tiny`,
		Args: noArgs,
	}
	f := cmd.Flags()
	f.BoolVar(&o.nonInteractive, "non-interactive", false, "ask nothing, and do all that is not skipped")
	f.BoolVar(&o.input.SkipHost, "skip-host", false, "leave the host's settings, group and helper alone")
	f.BoolVar(&o.input.SkipNetwork, "skip-network", false, "make no default network")
	f.StringVar(&o.input.DownloadVersion, "download-version", "", "release of Firecracker to get, also where KVM does not work")
	f.StringVar(&o.input.Kernel, "kernel", "", "kernel to get if there is none, such as debian")
	f.StringVar(&o.input.Image, "image", "", "image to get if there is none, such as tiny or debian:12")
	a.jsonFlag(cmd)
	return a.command(cmd, "Init.Run", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a)
	})
}

func (o *initOptions) run(ctx context.Context, m *api.Client, a *app) error {
	if !o.nonInteractive && a.canAsk() {
		if err := o.ask(ctx, m, a); err != nil {
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
	if err := a.hostChanges(res.Changes); err != nil {
		return err
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

// ask goes through what is not there yet, with an answer to each that Enter gives.
func (o *initOptions) ask(ctx context.Context, m *api.Client, a *app) error {
	a.out.Notice("mvm keeps everything in " + m.CacheDir() + ".")
	status, err := m.Host.Status(ctx)
	if err != nil {
		return err
	}
	if !status.KVMAccessible {
		a.out.Notice("KVM does not work here: " + status.KVMReason + ". VMs run on QEMU in software: correct, but slower.")
	}
	setUp, err := m.Host.GetState(ctx)
	if err != nil {
		return err
	}
	if !o.input.SkipHost && setUp == nil {
		yes, err := a.yes(ctx, "Set the host up: IP forwarding, a group whose members may make VMs, the helper for them?", true)
		if err != nil {
			return err
		}
		o.input.SkipHost = !yes
	}
	if !o.input.SkipNetwork {
		if networks, err := m.Network.ListAll(ctx); err != nil {
			return err
		} else if len(networks) == 0 {
			yes, err := a.yes(ctx, "Make the default network: a bridge, and firewall rules of its own?", true)
			if err != nil {
				return err
			}
			o.input.SkipNetwork = !yes
		}
	}
	return o.askAssets(ctx, m, a)
}

func (o *initOptions) askAssets(ctx context.Context, m *api.Client, a *app) error {
	kernels, err := m.Kernel.ListAll(ctx)
	if err != nil {
		return err
	}
	if len(kernels) == 0 && o.input.Kernel == "" {
		if o.input.Kernel, err = a.word(ctx, "Which kernel to get? debian, official, firecracker, or none", "debian"); err != nil {
			return err
		}
	}
	images, err := m.Image.ListAll(ctx)
	if err != nil {
		return err
	}
	if len(images) == 0 && o.input.Image == "" {
		if o.input.Image, err = a.word(ctx, "Which image to get? tiny, debian, another of 'mvm image ls --remote', or none", "tiny"); err != nil {
			return err
		}
	}
	return nil
}

// word asks for a word; Enter alone gives the preset one, and none is "".
func (a *app) word(ctx context.Context, question, preset string) (string, error) {
	line, err := a.answer(ctx, question+" ["+preset+"]")
	switch {
	case err != nil || line == "none":
		return "", err
	case line == "":
		return preset, nil
	}
	return line, nil
}
