package api

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// CacheInitResult is what InitAll found and made.
type CacheInitResult struct {
	CacheDir  string   `json:"cache_dir"`
	Database  string   `json:"database"`
	Made      []string `json:"made"`      // directories that were not there, relative to the cache directory
	Initramfs []string `json:"initramfs"` // kernels whose initramfs is ready, so that the first VM need not wait
}

// InitAll makes the cache's directories and its database, and prepares the
// initramfs of each kernel that is there. What is there already stays.
func (o *CacheOperation) InitAll(ctx context.Context, opts ...Option) (*CacheInitResult, error) {
	c, progress := o.core, options(opts).progress
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	res := &CacheInitResult{CacheDir: c.paths.cache, Database: c.paths.rel(c.paths.db()), Made: []string{}, Initramfs: []string{}}
	progress.Send("cache", "making directories")
	for _, dir := range []string{c.paths.binaries(), c.paths.kernels(), c.paths.images(), c.paths.volumes(), c.paths.vms(), c.paths.snapshots(), c.paths.downloads(), c.paths.initramfs()} {
		if _, err := os.Stat(dir); err == nil {
			continue
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return res, mvm.Errorf(mvm.ErrUnavailable, "cannot make a directory of the cache: %w", err).
				WithHint("check the rights and the free space of %s", c.paths.cache)
		}
		res.Made = append(res.Made, c.paths.rel(dir))
	}
	kernels, err := st.ListKernels(ctx)
	if err != nil {
		return res, err
	}
	for _, k := range kernels {
		if _, err := os.Stat(c.paths.abs(k.Path)); err != nil {
			continue
		}
		progress.Send("initramfs", "preparing the initramfs of "+k.Name)
		if _, err := c.buildInitramfs(ctx, k, []string{"ext4"}); err != nil {
			return res, err
		}
		res.Initramfs = append(res.Initramfs, k.Type+":"+k.Version)
	}
	return res, nil
}

// usedLately is how long an initramfs counts as in use after a VM was made with
// it: its copy is written within seconds.
const usedLately = time.Hour

// PruneMisc removes what can be made or fetched again: downloads, temporary files,
// prepared initramfs. It waits for nobody: while something is being fetched or
// built it returns mvm.ErrBusy.
func (o *CacheOperation) PruneMisc(ctx context.Context, in PruneInput) (*PruneResult, error) {
	c := o.core
	if _, err := c.open(ctx); err != nil {
		return nil, err
	}
	release, err := c.lockAllAssets(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	res := &PruneResult{Removed: []string{}}
	var errs []error
	for _, path := range c.scratch() {
		size := usage(path)
		if !in.DryRun {
			if err := os.RemoveAll(path); err != nil {
				errs = append(errs, mvm.Errorf(mvm.ErrUnavailable, "%w", err).On("remove", c.paths.rel(path)).WithHint("see what holds it, and run 'mvm cache prune misc' again"))
				continue
			}
		}
		res.Removed, res.Bytes = append(res.Removed, c.paths.rel(path)), res.Bytes+size
	}
	return res, errors.Join(errs...)
}

// scratch lists what PruneMisc removes. A directory of temporary files that is not
// in the cache is shared with others, so it is left alone.
func (c *core) scratch() []string {
	var all []string
	for _, dir := range []string{c.paths.downloads(), filepath.Join(c.paths.cache, "tmp")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // not made yet
		}
		for _, e := range entries {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	bases, err := os.ReadDir(c.paths.initramfs())
	if err != nil {
		return all
	}
	for _, e := range bases {
		if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > usedLately {
			all = append(all, filepath.Join(c.paths.initramfs(), e.Name()))
		}
	}
	return all
}

// assetGate is held for a moment by whoever got the lock of an asset, and by
// PruneMisc for as long as it removes: whoever begins meanwhile waits at it.
const assetGate = "gate-assets"

// lockAllAssets sees to it that nothing is being fetched or built.
func (c *core) lockAllAssets(ctx context.Context) (release func(), err error) {
	if err := c.makeDir(c.paths.ops()); err != nil {
		return nil, err
	}
	gate, err := fsx.LockWait(ctx, filepath.Join(c.paths.ops(), assetGate))
	if err != nil {
		return nil, err
	}
	held := []*fsx.Lock{gate}
	release = func() {
		for _, l := range held {
			l.Unlock()
		}
	}
	names, err := filepath.Glob(filepath.Join(c.paths.ops(), "asset-*"))
	if err != nil {
		release()
		return nil, err
	}
	for _, name := range names {
		l, err := fsx.TryLock(name)
		if errors.Is(err, fsx.ErrLocked) {
			release()
			return nil, mvm.Errorf(mvm.ErrBusy, "another command is fetching or building something (%s)", filepath.Base(name)).
				WithHint("try again when it has ended")
		}
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, l)
	}
	return release, nil
}

// PruneAllResult is what PruneAll removed, by resource.
type PruneAllResult struct {
	VM       *PruneResult `json:"vm,omitempty"`
	Network  *PruneResult `json:"network,omitempty"`
	Image    *PruneResult `json:"image,omitempty"`
	Kernel   *PruneResult `json:"kernel,omitempty"`
	Binary   *PruneResult `json:"binary,omitempty"`
	Misc     *PruneResult `json:"misc,omitempty"`
	Combined int64        `json:"freed_bytes"`
}

// Prunable are the resources that can be pruned, in the order that frees most: an
// image is free when its VMs are gone.
func Prunable() []string { return []string{"vm", "network", "image", "kernel", "binary", "misc"} }

// Each calls f for every resource that was pruned, in order.
func (r *PruneAllResult) Each(f func(what string, res *PruneResult)) {
	for i, res := range []*PruneResult{r.VM, r.Network, r.Image, r.Kernel, r.Binary, r.Misc} {
		if res != nil {
			f(Prunable()[i], res)
		}
	}
}

// PruneAll prunes the resources named, or without a name all, as far as it gets.
func (o *CacheOperation) PruneAll(ctx context.Context, in PruneInput, only ...string) (*PruneAllResult, error) {
	want := map[string]bool{}
	for _, name := range only {
		want[name] = true
	}
	res := &PruneAllResult{}
	var errs []error
	for i, do := range []struct {
		prune func() (*PruneResult, error)
		into  **PruneResult
	}{
		{func() (*PruneResult, error) { return o.PruneVMs(ctx, in) }, &res.VM},
		{func() (*PruneResult, error) { return o.PruneNetworks(ctx, in) }, &res.Network},
		{func() (*PruneResult, error) { return o.PruneImages(ctx, in) }, &res.Image},
		{func() (*PruneResult, error) { return o.PruneKernels(ctx, in) }, &res.Kernel},
		{func() (*PruneResult, error) { return o.PruneBinaries(ctx, in) }, &res.Binary},
		{func() (*PruneResult, error) { return o.PruneMisc(ctx, in) }, &res.Misc},
	} {
		if len(only) > 0 && !want[Prunable()[i]] {
			continue
		}
		r, err := do.prune()
		errs = append(errs, err)
		if r != nil {
			*do.into = r
			res.Combined += r.Bytes
		}
	}
	return res, errors.Join(errs...)
}
