package api

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/image"
	"github.com/mvmctl/mvm/internal/image/catalog"
	"github.com/mvmctl/mvm/internal/image/oci"
	"github.com/mvmctl/mvm/internal/store"
)

// Pull gets an image: a distribution's, as the catalog knows it; a container image
// by oci://NAME; or one that is built from packages, such as "tiny". Where a
// distribution's download cannot be reached and its packages can, it is built from
// these.
func (o *ImageOperation) Pull(ctx context.Context, in ImagePullInput, opts ...Option) (*mvm.ImageItem, error) {
	progress := options(opts).progress
	if oci.IsRef(in.Type) {
		return o.pullContainer(ctx, in, progress)
	}
	ref := in.Type
	if in.Version != "" {
		ref += ":" + in.Version
	}
	item, err := o.pull(ctx, in, ref, progress)
	return item, mvm.Wrap(err, "pull image", ref)
}

func (o *ImageOperation) pull(ctx context.Context, in ImagePullInput, ref string, progress mvm.ProgressFunc) (*mvm.ImageItem, error) {
	c := o.core
	if err := image.CheckDetectors(in.DisabledDetectors); err != nil {
		return nil, err
	}
	cat, err := catalog.Load(c.paths.catalog())
	if err != nil {
		return nil, err
	}
	build := func() (*mvm.ImageItem, error) {
		return o.build(ctx, ImageBuildInput{Ref: ref, Force: in.Force, SetDefault: in.SetDefault}, progress)
	}
	e, err := cat.Entry(in.Type)
	if err != nil {
		if _, refErr := image.ParseRef(ref); refErr == nil {
			return build()
		}
		return nil, err
	}
	item, err := c.download(ctx, e, in, progress)
	if e.Packages && ctx.Err() == nil && (errors.Is(err, mvm.ErrUnavailable) || errors.Is(err, mvm.ErrNotFound)) {
		if _, refErr := image.ParseRef(ref); refErr == nil {
			progress.Send("build", fmt.Sprintf("%s cannot be downloaded (%v); building it from packages", e.Name, err))
			built, buildErr := build()
			if buildErr != nil {
				return nil, errors.Join(err, buildErr)
			}
			return built, nil
		}
	}
	return item, err
}

// download gets an image of the catalog.
func (c *core) download(ctx context.Context, e catalog.Entry, in ImagePullInput, progress mvm.ProgressFunc) (*mvm.ImageItem, error) {
	arch, err := unameArch(in.Arch)
	if err != nil {
		return nil, err
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	src, err := c.catalogSource(ctx, st, arch, in.NoCache || in.Force, progress)
	if err != nil {
		return nil, err
	}
	file, version, err := src.Find(ctx, e, in.Version)
	if err != nil {
		return c.olderImage(ctx, st, e, in, arch, err)
	}
	unlock, err := c.lockAsset(ctx, "image-"+e.Type+"-"+version)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := c.images(ctx, st)
	if err != nil {
		return nil, err
	}
	ref := image.Ref{Type: e.Type, Version: version}
	for _, i := range all {
		if !in.Force && i.Type == ref.Type && i.Version == ref.Version && i.Arch == arch && i.IsPresent {
			return i, c.maybeDefaultImage(ctx, st, i, in.SetDefault, len(all) == 1)
		}
	}
	if err := c.replaceable(ctx, st, all, ref); err != nil {
		return nil, err
	}
	file.Unchecked = in.SkipChecksum
	got, err := src.Fetch(ctx, file)
	if err != nil {
		return nil, err
	}
	item, err := c.intake(ctx, ref, image.ImportOptions{Path: got.Path, Arch: arch, Disabled: in.DisabledDetectors, SkipOptimization: in.SkipOptimization, Progress: progress})
	if err != nil {
		return nil, err
	}
	item.Name, item.Provenance = e.Name+" "+version, got.Provenance
	if err := c.registerImage(ctx, st, all, item, in.SetDefault); err != nil {
		return nil, err
	}
	src.Forget(got) // the image is what is wanted; the same again is rare
	return item, nil
}

// olderImage goes on with an image that is there where the listings of its upstream
// cannot be reached. Somebody who names a version, or wants it anew, is told.
func (c *core) olderImage(ctx context.Context, st *store.Store, e catalog.Entry, in ImagePullInput, arch string, cause error) (*mvm.ImageItem, error) {
	if !errors.Is(cause, mvm.ErrUnavailable) || in.Force || ctx.Err() != nil {
		return nil, cause
	}
	all, err := c.images(ctx, st)
	if err != nil {
		return nil, err
	}
	for _, i := range all { // newest first
		if i.Type == e.Type && i.Arch == arch && i.IsPresent && (in.Version == "" || in.Version == i.Version) {
			c.notice(fmt.Sprintf("%v; %s:%s is there already", cause, i.Type, i.Version))
			return i, c.maybeDefaultImage(ctx, st, i, in.SetDefault, len(all) == 1)
		}
	}
	return nil, cause
}

// catalogSource is what looks for images upstream.
func (c *core) catalogSource(ctx context.Context, st *store.Store, arch string, noCache bool, progress mvm.ProgressFunc) (catalog.Source, error) {
	set, err := loadSettings(ctx, st)
	if err != nil {
		return catalog.Source{}, err
	}
	ttl := time.Duration(set.num("defaults.image", "remote_list_cache_ttl")) * time.Second
	return catalog.Source{Fetcher: c.fetcher(progress, noCache), TTL: ttl, Arch: arch, Notice: c.notice}, nil
}

// ImageRemoteInput says what to list of the images that can be pulled.
type ImageRemoteInput struct {
	Type    string // "" is all
	Arch    string // "" is the host's
	NoCache bool   // ask, whatever was kept
	Limit   int    // versions of a type; 0 is defaults.image remote_list_limit
}

// ListRemote lists the versions that can be pulled, by type in the catalog's order
// and newest first. What cannot be reached is left out and told, unless it is all.
func (o *ImageOperation) ListRemote(ctx context.Context, in ImageRemoteInput, opts ...Option) ([]*mvm.ImageVersion, error) {
	c := o.core
	cat, err := catalog.Load(c.paths.catalog())
	if err != nil {
		return nil, err
	}
	if in.Type != "" {
		e, err := cat.Entry(in.Type)
		if err != nil {
			return nil, err
		}
		cat = catalog.Catalog{e}
	}
	arch, err := unameArch(in.Arch)
	if err != nil {
		return nil, err
	}
	st, set, err := c.openSet(ctx)
	if err != nil {
		return nil, err
	}
	if in.Limit == 0 {
		in.Limit = set.num("defaults.image", "remote_list_limit")
	}
	here, err := c.images(ctx, st)
	if err != nil {
		return nil, err
	}
	src, err := c.catalogSource(ctx, st, arch, in.NoCache, serial(options(opts).progress))
	if err != nil {
		return nil, err
	}
	return c.listRemote(ctx, src, cat, here, in.Limit)
}

func (c *core) listRemote(ctx context.Context, src catalog.Source, cat catalog.Catalog, here []*mvm.ImageItem, limit int) ([]*mvm.ImageVersion, error) {
	found, errs := make([][]*mvm.ImageVersion, len(cat)), make([]error, len(cat))
	var g errgroup.Group
	g.SetLimit(4)
	for n, e := range cat {
		if e.Arch[src.Arch] == "" {
			continue
		}
		g.Go(func() error {
			versions, err := src.List(ctx, e)
			errs[n] = mvm.Wrap(err, "list images", e.Type)
			for _, v := range versions[:min(len(versions), limit)] {
				present := slices.ContainsFunc(here, func(i *mvm.ImageItem) bool {
					return i.Type == e.Type && i.Version == v && i.Arch == src.Arch && i.IsPresent
				})
				found[n] = append(found[n], &mvm.ImageVersion{Type: e.Type, Version: v, Name: e.Name + " " + v, Arch: src.Arch, IsPresent: present})
			}
			return nil
		})
	}
	_ = g.Wait() // their errors are in errs
	all := slices.Concat(found...)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return []*mvm.ImageVersion{}, errors.Join(errs...)
	}
	for _, err := range errs {
		if err != nil {
			c.notice(err.Error())
		}
	}
	return all, nil
}

// serial lets one call at a time through, for work that is done side by side.
func serial(f mvm.ProgressFunc) mvm.ProgressFunc {
	if f == nil {
		return nil
	}
	var mu sync.Mutex
	return func(e mvm.ProgressEvent) {
		mu.Lock()
		defer mu.Unlock()
		f(e)
	}
}

// catalog is the user's own list of images.
func (p paths) catalog() string { return filepath.Join(p.config, "images.yaml") }
