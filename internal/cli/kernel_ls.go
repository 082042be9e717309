package cli

import (
	"context"
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type kernelListOptions struct {
	long, remote bool
	input        api.KernelRemoteInput
}

func newKernelList(a *app) *cobra.Command {
	var o kernelListOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List kernels",
		Long: `List the kernels in the cache, or with --remote those that can be pulled. What
upstream told is kept for a while (defaults.kernel remote_list_cache_ttl).`,
		Example: "  mvm kernel ls\n  mvm kernel ls --json\n  mvm kernel ls --remote\n  mvm kernel ls --remote --type official --no-cache",
		Args:    noArgs,
	}
	f := cmd.Flags()
	f.BoolVar(&o.long, "long", false, "also ids and paths, or where it is downloaded from")
	f.BoolVarP(&o.remote, "remote", "r", false, "what can be pulled")
	f.BoolVar(&o.input.NoCache, "no-cache", false, "ask upstream now (with --remote)")
	f.StringVar(&o.input.Type, "type", "", "only kernels of a type: firecracker or official (with --remote)")
	f.IntVar(&o.input.Limit, "limit", 0, "how many versions of each type (with --remote); that of the settings when not given")
	a.jsonFlag(cmd)
	return a.command(cmd, "Kernel.ListAll Kernel.ListRemote", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a.out)
	})
}

func (o *kernelListOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	if o.remote {
		p := out.Progress()
		versions, err := m.Kernel.ListRemote(ctx, o.input, api.OnProgress(p.Show))
		p.Done()
		if len(versions) == 0 && err != nil {
			return err
		}
		return errors.Join(printVersions(out, versions, o.long), err)
	}
	kernels, err := m.Kernel.ListAll(ctx)
	if err != nil {
		return err
	}
	if out.JSON {
		return render.List(out, kernels)
	}
	return out.Table(kernelTable(out, kernels, o.long))
}

// printVersions prints what can be pulled.
func printVersions(out *render.Output, versions []mvm.VersionInfo, long bool) error {
	if out.JSON {
		return render.List(out, versions)
	}
	t := render.Table{Columns: []render.Column{{Head: "VERSION", Keep: true}, {Head: "RELEASED"}, {Head: "SIZE", Right: true}, {Head: "HERE"}, {Head: "NOTE"}}}
	if long {
		t.Columns = append(t.Columns, render.Column{Head: "SOURCE"})
	}
	for _, v := range versions {
		size, here := "-", render.Cell{Text: "-", Tone: render.ToneMuted}
		if v.Bytes > 0 {
			size = render.Size(v.Bytes)
		}
		if v.IsPresent {
			here = render.Cell{Text: "yes", Tone: render.ToneGood}
		}
		row := []render.Cell{{Text: v.Type + ":" + v.Version}, {Text: dash(v.Released)}, {Text: size}, here, {Text: dash(v.Note)}}
		if long {
			row = append(row, render.Text(dash(v.Source))...)
		}
		t.Rows = append(t.Rows, row)
	}
	return out.Table(t)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
