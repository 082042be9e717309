package api

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
)

// CacheCleanResult is what Clean removed, or with a dry run would.
type CacheCleanResult struct {
	Pruned    *PruneAllResult `json:"pruned"`
	Snapshots []string        `json:"snapshots"`
	Volumes   []string        `json:"volumes"`
	Removed   []string        `json:"removed"` // files and directories of the cache
	Left      []string        `json:"left"`    // what is not mvm's, in its directory
	Kept      []string        `json:"kept"`    // the database, where the host is changed and only it knows what was before
	Bytes     int64           `json:"freed_bytes"`
}

// Clean removes everything: all VMs, also those that run, networks, snapshots,
// volumes with what is on them, images, kernels, binaries, and the cache directory
// with the database. SSH keys and settings in the configuration directory stay, and
// so does what the host was set up with: then the database stays too, with nothing
// else in it, for HostOperation.Reset to take that back. A run that was killed is gone
// on with by the next one.
//
// Errors: mvm.ErrBusy while another command fetches or builds something.
func (o *CacheOperation) Clean(ctx context.Context, dryRun bool) (*CacheCleanResult, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	res := &CacheCleanResult{Snapshots: []string{}, Volumes: []string{}, Removed: []string{}, Left: []string{}, Kept: []string{}, Bytes: usage(c.paths.cache)}
	setup, err := readSetup(ctx, st.Queries)
	if err != nil {
		return nil, err
	}
	snapshots, err := st.ListSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	volumes, err := st.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	vms, err := st.ListVMs(ctx)
	if err != nil {
		return nil, err
	}
	if !dryRun && len(vms) > 0 {
		if err := c.requireRoot("removing VMs"); err != nil {
			return nil, err
		}
	}
	for _, s := range snapshots {
		res.Snapshots = append(res.Snapshots, s.Name)
	}
	for _, v := range volumes {
		res.Volumes = append(res.Volumes, v.Name)
	}
	all := PruneInput{All: true, DryRun: dryRun}
	if res.Pruned, err = o.PruneAll(ctx, all, "vm"); err != nil {
		return res, err
	}
	if !dryRun {
		if err := c.removeDisks(ctx, res); err != nil {
			return res, err
		}
	}
	rest, err := o.PruneAll(ctx, all, slices.DeleteFunc(Prunable(), func(s string) bool { return s == "vm" })...)
	rest.VM = res.Pruned.VM
	res.Pruned = rest
	if err != nil {
		return res, err
	}
	release, err := c.lockAllAssets(ctx)
	if err != nil {
		return res, err
	}
	defer release()
	return res, c.removeCache(res, dryRun, len(setup.Changes) > 0)
}

// removeDisks removes the snapshots and volumes that res names.
func (c *core) removeDisks(ctx context.Context, res *CacheCleanResult) error {
	if len(res.Snapshots) > 0 {
		batch, err := (&SnapshotOperation{c}).Remove(ctx, SnapshotInput{Identifiers: res.Snapshots})
		if err := errors.Join(err, batch.Err()); err != nil {
			return err
		}
	}
	if len(res.Volumes) > 0 {
		batch, err := (&VolumeOperation{c}).Remove(ctx, VolumeInput{Identifiers: res.Volumes}, true)
		return errors.Join(err, batch.Err())
	}
	return nil
}

// removeCache removes the files of the cache, and its directory if nothing else is
// in it. The database goes last: until then a run that was killed can go on. It stays
// where it knows what the host was before.
func (c *core) removeCache(res *CacheCleanResult, dryRun, keepDatabase bool) error {
	entries, err := os.ReadDir(c.paths.cache)
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot read the cache directory: %w", err).WithHint("remove %s by hand", c.paths.cache)
	}
	slices.SortStableFunc(entries, func(a, b fs.DirEntry) int { return rank(a.Name()) - rank(b.Name()) })
	if !dryRun {
		if err := errors.Join(c.close(), c.paths.memory().Clear()); err != nil {
			return err
		}
	}
	for _, e := range entries {
		switch {
		case !c.isOurs(e.Name()):
			res.Left = append(res.Left, e.Name())
			continue
		case keepDatabase && strings.HasPrefix(e.Name(), databaseFile):
			if e.Name() == databaseFile { // what else begins so belongs to it, and may go when it is closed
				res.Kept = append(res.Kept, e.Name())
			}
			continue
		}
		if !dryRun {
			if err := os.RemoveAll(filepath.Join(c.paths.cache, e.Name())); err != nil {
				return mvm.Errorf(mvm.ErrUnavailable, "%w", err).On("clean", c.paths.cache).WithHint("see what holds it, and run 'mvm cache clean' again")
			}
		}
		res.Removed = append(res.Removed, e.Name())
	}
	if !dryRun && len(res.Left)+len(res.Kept) == 0 {
		_ = os.Remove(c.paths.cache) // it may be a mount point
	}
	return nil
}

const databaseFile = "mvmdb.db"

func rank(name string) int {
	if strings.HasPrefix(name, databaseFile) {
		return 1
	}
	return 0
}

// isOurs tells the files of the cache from what else is in its directory.
func (c *core) isOurs(name string) bool {
	if strings.HasPrefix(name, databaseFile) {
		return true
	}
	p := c.paths
	for _, dir := range []string{p.ops(), p.kernels(), p.images(), p.binaries(), p.snapshots(), p.volumes(), p.downloads(), p.initramfs(), p.vms()} {
		if filepath.Base(dir) == name {
			return true
		}
	}
	return slices.Contains([]string{"tmp", "logs", "networks", "warm", "dns", "qemu.version"}, name)
}
