package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) cacheCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "cache",
		Short:   "Free what is not needed",
		Long:    "Free what the cache holds and nobody needs.",
		Example: "  mvm cache prune --dry-run",
	}, newCachePrune(a))
}

// prunable are the resources that prune knows, in the order that frees most: an
// image is free when its VMs are gone.
var prunable = []string{"vm", "network", "image", "kernel"}

type cachePruneOptions struct {
	input api.PruneInput
	force bool
}

func newCachePrune(a *app) *cobra.Command {
	var o cachePruneOptions
	cmd := &cobra.Command{
		Use:   "prune [vm] [network] [image] [kernel]",
		Short: "Remove what nobody uses",
		Long: `Remove VMs that do not run, and networks, images and kernels that no VM uses; without
a word all of these. Default ones are kept, and what a VM uses always. With --all also
VMs that run, and unused defaults. On a terminal you are asked first.`,
		Example: "  mvm cache prune --dry-run\n  mvm cache prune image kernel\n  mvm cache prune vm --all --force",
		Args: func(cmd *cobra.Command, args []string) error {
			for _, s := range args {
				for _, word := range strings.Split(s, ",") {
					if !slices.Contains(prunable, word) {
						return usagef("%s cannot be pruned", mvm.Quote(word)).withHint("use %s", alternatives(prunable))
					}
				}
			}
			return nil
		},
		ValidArgsFunction: fixed(prunable...),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.input.All, "all", "a", false, "also VMs that run, and unused defaults")
	f.BoolVar(&o.input.DryRun, "dry-run", false, "only tell what would be removed")
	f.BoolVarP(&o.force, "force", "f", false, "ask nothing")
	a.jsonFlag(cmd)
	return a.command(cmd, "Cache.PruneVMs Cache.PruneNetworks Cache.PruneImages Cache.PruneKernels", func(ctx context.Context, m *api.Client, args []string) error {
		return o.run(ctx, m, a, strings.FieldsFunc(strings.Join(args, ","), func(r rune) bool { return r == ',' }))
	})
}

func (o *cachePruneOptions) run(ctx context.Context, m *api.Client, a *app, words []string) error {
	if !o.input.DryRun && !o.force && a.canAsk() {
		would, err := prune(ctx, m, words, api.PruneInput{DryRun: true, All: o.input.All})
		if err != nil {
			return err
		}
		if would.count() > 0 {
			if err := a.confirm(ctx, "Remove "+allOf(would.names())+"?", false); err != nil {
				return err
			}
		}
	}
	done, err := prune(ctx, m, words, o.input)
	return errors.Join(err, o.print(a.out, done))
}

func (o *cachePruneOptions) print(out *render.Output, done pruned) error {
	if out.JSON {
		return out.Object(done)
	}
	var bytes int64
	for _, what := range prunable {
		if r := done[what]; r != nil {
			bytes += r.Bytes
		}
	}
	for _, name := range done.names() {
		if err := out.Line(name); err != nil {
			return err
		}
	}
	verb := "freed"
	if o.input.DryRun {
		verb = "would free"
	}
	out.Notice(fmt.Sprintf("%s %s", verb, render.Size(bytes)))
	return nil
}

// pruned is what was removed, by resource.
type pruned map[string]*api.PruneResult

func (p pruned) names() []string {
	var names []string
	for _, what := range prunable {
		if r := p[what]; r != nil {
			for _, n := range r.Removed {
				names = append(names, what+" "+n)
			}
		}
	}
	return names
}

func (p pruned) count() int { return len(p.names()) }

// prune prunes the resources named, or all of them, as far as it gets.
func prune(ctx context.Context, m *api.Client, words []string, in api.PruneInput) (pruned, error) {
	done := pruned{}
	var errs []error
	for _, what := range prunable {
		if len(words) > 0 && !slices.Contains(words, what) {
			continue
		}
		var res *api.PruneResult
		var err error
		switch what {
		case "vm":
			res, err = m.Cache.PruneVMs(ctx, in)
		case "network":
			res, err = m.Cache.PruneNetworks(ctx, in)
		case "image":
			res, err = m.Cache.PruneImages(ctx, in)
		case "kernel":
			res, err = m.Cache.PruneKernels(ctx, in)
		}
		if res != nil {
			done[what] = res
		}
		errs = append(errs, err)
	}
	return done, errors.Join(errs...)
}
