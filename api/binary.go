package api

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/binary"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/store"
)

// BinaryPullInput is a VMM release to download.
type BinaryPullInput struct {
	Name         string // "firecracker"; its jailer comes along
	Version      string // "1.16.1"; "" takes defaults.firecracker version
	SetDefault   bool
	SkipChecksum bool
}

// ListAll returns the VMM binaries in the cache.
func (o *BinaryOperation) ListAll(ctx context.Context) ([]*mvm.BinaryItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	all, err := st.ListBinaries(ctx)
	for _, b := range all {
		_, statErr := os.Stat(o.core.paths.abs(b.Path))
		b.IsPresent = statErr == nil
	}
	return all, err
}

// Pull downloads a release of Firecracker with its jailer, checked against its
// published checksum and asked for its version, and registers both. The first
// release becomes the default.
func (o *BinaryOperation) Pull(ctx context.Context, in BinaryPullInput, opts ...Option) ([]*mvm.BinaryItem, error) {
	name := firstOf(in.Name, "firecracker")
	if name != "firecracker" {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "%s cannot be pulled", mvm.Quote(name)).WithHint("only firecracker is downloaded; QEMU comes with the distribution")
	}
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.core.pullFirecracker(ctx, st, in, options(opts).progress)
}

func (c *core) pullFirecracker(ctx context.Context, st *store.Store, in BinaryPullInput, progress mvm.ProgressFunc) ([]*mvm.BinaryItem, error) {
	set, err := loadSettings(ctx, st)
	if err != nil {
		return nil, err
	}
	version := firstOf(in.Version, set.str("defaults.firecracker", "version"))
	unlock, err := c.lockAsset(ctx, "firecracker-"+version)
	if err != nil {
		return nil, err
	}
	defer unlock()
	rel, err := binary.PullFirecracker(ctx, version, binary.Options{
		Dir: c.paths.binaries(), Fetcher: c.fetcher(progress, false), SkipChecksum: in.SkipChecksum, Runner: c.runner, Progress: progress,
	})
	if err != nil {
		return nil, err
	}
	all, err := st.ListBinaries(ctx)
	if err != nil {
		return nil, err
	}
	items := []*mvm.BinaryItem{}
	for _, f := range []struct{ name, path string }{{"firecracker", rel.Firecracker}, {"jailer", rel.Jailer}} {
		item := &mvm.BinaryItem{ID: newID(), Name: f.name, Version: rel.Version, FullVersion: "v" + rel.Version, Path: c.paths.rel(f.path), IsPresent: true, CreatedAt: now(), UpdatedAt: now(), Provenance: rel.Provenance}
		first := true
		for _, b := range all {
			first = first && b.Name != f.name
			if b.Name == f.name && b.Version == rel.Version {
				item.ID, item.CreatedAt, item.IsDefault = b.ID, b.CreatedAt, b.IsDefault
				if item.Provenance == (mvm.Provenance{}) { // it was there already
					item.Provenance = b.Provenance
				}
			}
		}
		item.IsDefault = item.IsDefault || in.SetDefault || first
		if err := st.UpsertBinary(ctx, item); err != nil {
			return nil, mvm.Wrap(err, "register", filepath.Base(f.path))
		}
		if item.IsDefault {
			if err := st.SetDefaultBinary(ctx, item.ID); err != nil {
				return nil, err
			}
		}
		items = append(items, item)
	}
	return items, nil
}

// wantFirecracker gets Firecracker where KVM works and none is there yet. Without
// a network the machine goes on with QEMU, and is told how to change that.
func (c *core) wantFirecracker(ctx context.Context, st *store.Store, progress mvm.ProgressFunc) (string, bool, error) {
	if kvm := host.CheckKVM(); !kvm.Usable {
		return "not needed: " + kvm.Problem.What, false, nil
	}
	if p := c.firecracker("").Probe(ctx); p.Usable {
		return "firecracker " + p.Version + " at " + p.Path, false, nil
	}
	if b, err := c.findBinary(ctx, st, ""); err != nil || b != nil {
		if err != nil {
			return "", false, err
		}
		return "firecracker " + b.Version, false, nil
	}
	progress.Send("firecracker", "downloading Firecracker")
	items, err := c.pullFirecracker(ctx, st, BinaryPullInput{SetDefault: true}, progress)
	switch {
	case errors.Is(err, mvm.ErrUnavailable) && ctx.Err() == nil:
		return "could not be downloaded (" + err.Error() + "); QEMU is used; get it later with 'mvm binary pull firecracker'", false, nil
	case err != nil:
		return "", false, err
	}
	return "firecracker " + items[0].Version, true, nil
}
