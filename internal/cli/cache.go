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
		Short:   "Manage the cache directory",
		Long:    "Make the cache directory ready, and free what it holds and nobody needs.",
		Example: "  mvm cache prune --dry-run",
	}, newCacheInit(a), newCachePrune(a), newCacheClean(a))
}

type cachePruneOptions struct {
	input api.PruneInput
	force bool
}

func newCachePrune(a *app) *cobra.Command {
	var o cachePruneOptions
	cmd := &cobra.Command{
		Use:   "prune [vm] [network] [image] [kernel] [binary] [misc]",
		Short: "Remove what nobody uses",
		Long: `Remove VMs that do not run, and networks, images, kernels and binaries that no VM uses;
misc is what can be fetched or made again: downloads, temporary files. Without a word all of
these. Default ones are kept, and what a VM uses always. With --all also VMs that run,
and unused defaults. On a terminal you are asked first.`,
		Example: "  mvm cache prune --dry-run\n  mvm cache prune image kernel\n  mvm cache prune vm --all --force",
		Args: func(cmd *cobra.Command, args []string) error {
			for _, s := range args {
				for _, word := range strings.Split(s, ",") {
					if !slices.Contains(api.Prunable(), word) {
						return usagef("%s cannot be pruned", mvm.Quote(word)).withHint("use %s", alternatives(api.Prunable()))
					}
				}
			}
			return nil
		},
		ValidArgsFunction: fixed(api.Prunable()...),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.input.All, "all", "a", false, "also VMs that run, and unused defaults")
	f.BoolVar(&o.input.DryRun, "dry-run", false, "only tell what would be removed")
	f.BoolVarP(&o.force, "force", "f", false, "ask nothing")
	a.jsonFlag(cmd)
	return a.command(cmd, "Cache.PruneAll", func(ctx context.Context, m *api.Client, args []string) error {
		return o.run(ctx, m, a, strings.FieldsFunc(strings.Join(args, ","), func(r rune) bool { return r == ',' }))
	})
}

func (o *cachePruneOptions) run(ctx context.Context, m *api.Client, a *app, words []string) error {
	if !o.input.DryRun && !o.force && a.canAsk() {
		would, err := m.Cache.PruneAll(ctx, api.PruneInput{DryRun: true, All: o.input.All}, words...)
		if err != nil {
			return err
		}
		if names := prunedNames(would); len(names) > 0 {
			if err := a.confirm(ctx, "Remove "+allOf(names)+"?", false); err != nil {
				return err
			}
		}
	}
	done, err := m.Cache.PruneAll(ctx, o.input, words...)
	return errors.Join(err, o.print(a.out, done))
}

func (o *cachePruneOptions) print(out *render.Output, done *api.PruneAllResult) error {
	if out.JSON {
		return out.Object(done)
	}
	for _, name := range prunedNames(done) {
		if err := out.Line(name); err != nil {
			return err
		}
	}
	verb := "freed"
	if o.input.DryRun {
		verb = "would free"
	}
	out.Notice(fmt.Sprintf("%s %s", verb, render.Size(done.Combined)))
	return nil
}

// prunedNames lists what went as "vm web".
func prunedNames(done *api.PruneAllResult) []string {
	var names []string
	done.Each(func(what string, r *api.PruneResult) {
		for _, n := range r.Removed {
			names = append(names, what+" "+n)
		}
	})
	return names
}

func newCacheInit(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the cache directory ready",
		Long: `Make the directories and the database of the cache, and prepare the initramfs of
each kernel that is there, so that the first VM need not wait for it. What is there
already stays; every command makes what it needs by itself.`,
		Example: "  mvm cache init\n  MVM_CACHE_DIR=/srv/mvm mvm cache init",
		Args:    noArgs,
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Cache.InitAll", func(ctx context.Context, m *api.Client, _ []string) error {
		p := a.out.Progress()
		res, err := m.Cache.InitAll(ctx, api.OnProgress(p.Show))
		p.Done()
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(res)
		}
		for _, dir := range res.Made {
			a.out.Detail("made " + dir)
		}
		for _, k := range res.Initramfs {
			a.out.Detail("initramfs for " + k + " is ready")
		}
		return a.out.Line(res.CacheDir)
	})
}

type cacheCleanOptions struct{ dryRun, force bool }

func newCacheClean(a *app) *cobra.Command {
	var o cacheCleanOptions
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Remove everything",
		Long: `Remove everything: all VMs, also those that run, networks, snapshots, volumes with what
is on them, images, kernels, binaries, the database and the cache directory. SSH keys
and the host's settings stay; see 'mvm key rm' and 'mvm host reset'. Until that reset
the database stays as well, which knows what the host was before. You are asked first;
a script has to say --force.`,
		Example: "  mvm cache clean --dry-run\n  mvm cache clean --force",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only tell what would be removed")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "ask nothing")
	a.jsonFlag(cmd)
	return a.command(cmd, "Cache.Clean", func(ctx context.Context, m *api.Client, _ []string) error {
		return o.run(ctx, m, a)
	})
}

func (o *cacheCleanOptions) run(ctx context.Context, m *api.Client, a *app) error {
	if !o.dryRun && !o.force {
		if !a.canAsk() {
			return usagef("this removes everything in %s", m.CacheDir()).withHint("add --force if that is meant; 'mvm cache clean --dry-run' lists it")
		}
		would, err := m.Cache.Clean(ctx, true)
		if err != nil {
			return err
		}
		if err := a.confirm(ctx, "Remove "+what(would)+" and "+m.CacheDir()+"?", false); err != nil {
			return err
		}
	}
	res, err := m.Cache.Clean(ctx, o.dryRun)
	if err != nil {
		return err
	}
	if a.out.JSON {
		return a.out.Object(res)
	}
	verb := "removed"
	if o.dryRun {
		verb = "would remove"
	}
	for _, name := range res.Left {
		a.out.Notice(name + " is not mvm's and stays")
	}
	if len(res.Kept) > 0 {
		a.out.Notice("the database stays, which knows what the host was before mvm changed it: 'mvm host reset' takes that back")
	}
	a.out.Notice(fmt.Sprintf("%s %s, %s in all", verb, what(res), render.Size(res.Bytes)))
	return a.out.Line(m.CacheDir())
}

// what counts what Clean removes, and names what holds data of the user's.
func what(res *api.CacheCleanResult) string {
	var parts []string
	res.Pruned.Each(func(kind string, r *api.PruneResult) {
		if n := len(r.Removed); n > 0 && kind != "misc" {
			parts = append(parts, fmt.Sprintf("%d %s", n, plural(kind, n)))
		}
	})
	for kind, names := range map[string][]string{"snapshot": res.Snapshots, "volume": res.Volumes} {
		if len(names) > 0 {
			parts = append(parts, plural(kind, len(names))+" "+strings.Join(names, ", "))
		}
	}
	if len(parts) == 0 {
		return "nothing but the database"
	}
	return allOf(parts)
}

func plural(kind string, n int) string {
	name := map[string]string{"vm": "VM", "binary": "binarie"}[kind]
	if name == "" {
		name = kind
	}
	if n == 1 {
		return strings.TrimSuffix(name, "ie") + map[bool]string{true: "y"}[kind == "binary"]
	}
	return name + "s"
}
