package api

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/image"
	"github.com/mvmctl/mvm/internal/store"
)

// ListAll returns the images in the cache, newest first within a type.
func (o *ImageOperation) ListAll(ctx context.Context) ([]*mvm.ImageItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.core.images(ctx, st)
}

func (c *core) images(ctx context.Context, st *store.Store) ([]*mvm.ImageItem, error) {
	all, err := st.ListImages(ctx)
	slices.SortStableFunc(all, func(a, b *mvm.ImageItem) int {
		if a.Type != b.Type {
			return compare(a.Type, b.Type)
		}
		return compareVersions(b.Version, a.Version)
	})
	for _, i := range all {
		i.IsPresent = c.imagePresent(i)
	}
	return all, err
}

// Get returns one image.
func (o *ImageOperation) Get(ctx context.Context, in ImageInput) (*mvm.ImageItem, error) {
	sel, err := one("image", in.Identifiers)
	if err != nil {
		return nil, err
	}
	all, err := o.ListAll(ctx)
	if err != nil {
		return nil, err
	}
	return pick("image", imageSelector(sel), "see 'mvm image ls', or get one with 'mvm image pull debian'", imageCandidates(all))
}

// SetDefault makes an image the one that new VMs get.
func (o *ImageOperation) SetDefault(ctx context.Context, in ImageInput) (*mvm.ImageItem, error) {
	i, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	if err := o.core.st.SetDefaultImage(ctx, i.ID); err != nil {
		return nil, err
	}
	return o.core.st.GetImage(ctx, i.ID)
}

// Build makes an image from the host's package mirror: "tiny" is busybox and an
// SSH server, "debian:12" a minimal Debian with systemd.
func (o *ImageOperation) Build(ctx context.Context, in ImageBuildInput, opts ...Option) (*mvm.ImageItem, error) {
	item, err := o.build(ctx, in, options(opts).progress)
	return item, mvm.Wrap(err, "build image", in.Ref)
}

func (o *ImageOperation) build(ctx context.Context, in ImageBuildInput, progress mvm.ProgressFunc) (*mvm.ImageItem, error) {
	c := o.core
	ref, err := image.ParseRef(in.Ref)
	if err == nil {
		err = image.CheckPackages(ref, in.Packages)
	}
	if err != nil {
		return nil, err
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	unlock, err := c.lockAsset(ctx, "image-"+ref.Type+"-"+ref.Version)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := c.images(ctx, st)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if !in.Force && i.Type == ref.Type && i.Version == ref.Version && i.IsPresent {
			if len(in.Packages) > 0 {
				return nil, mvm.Errorf(mvm.ErrExists, "it is there already, and may lack the packages").WithHint("build it again with --force, or leave --include out")
			}
			return i, c.maybeDefaultImage(ctx, st, i, in.SetDefault, len(all) == 1)
		}
	}
	if err := c.replaceable(ctx, st, all, ref); err != nil {
		return nil, err
	}
	id := newID()
	got, err := image.Build(ctx, ref, image.Options{Runner: c.runner, Cache: c.paths.downloads(), Dest: filepath.Join(c.paths.images(), id), Packages: in.Packages, Progress: progress})
	if err != nil {
		return nil, err
	}
	item := &mvm.ImageItem{
		ID: id, Type: got.Type, Version: got.Version, Name: got.Name, Arch: got.Arch, Path: c.paths.rel(got.Path), FSType: got.FSType,
		MinimumRootfsSizeMiB: got.MinimumMiB, OriginalSize: got.SizeBytes, IsPresent: true, PulledAt: now(), CreatedAt: now(), UpdatedAt: now(),
		Distro: optional(got.Distro), FSUUID: optional(got.UUID),
	}
	return item, c.registerImage(ctx, st, all, item, in.SetDefault)
}

// replaceable refuses to build an image anew that VMs have disks on top of.
func (c *core) replaceable(ctx context.Context, q interface {
	ListVMsUsing(context.Context, store.Use, string) ([]*mvm.VMInstanceItem, error)
	ListSnapshots(context.Context) ([]*mvm.SnapshotItem, error)
}, all []*mvm.ImageItem, ref image.Ref) error {
	for _, i := range all {
		if i.Type != ref.Type || i.Version != ref.Version || !i.IsPresent {
			continue
		}
		users, err := q.ListVMsUsing(ctx, store.UseImage, i.ID)
		if err != nil {
			return err
		}
		if err := errors.Join(inUse(users, false), neededBySnapshots(ctx, q, store.UseImage, i.ID)); err != nil {
			return err
		}
	}
	return nil
}

// registerImage puts a new image into the store, in place of an older one of the
// same type and version.
func (c *core) registerImage(ctx context.Context, st *store.Store, all []*mvm.ImageItem, item *mvm.ImageItem, asDefault bool) error {
	var old *mvm.ImageItem
	for _, i := range all {
		if i.Type == item.Type && i.Version == item.Version {
			old = i
		}
	}
	if old != nil {
		if err := c.paths.memory().Drop(old.ID); err != nil {
			return err
		}
	}
	err := st.Tx(ctx, func(tx *store.Tx) error {
		if old == nil {
			return tx.InsertImage(ctx, item)
		}
		// Again, now in the transaction: a VM may have come while it was built.
		if err := c.replaceable(ctx, tx, all, image.Ref{Type: item.Type, Version: item.Version}); err != nil {
			return err
		}
		asDefault = asDefault || old.IsDefault
		if err := tx.DeleteImage(ctx, old.ID); err != nil {
			return err
		}
		return tx.InsertImage(ctx, item)
	})
	if err != nil {
		return errors.Join(err, c.removeAsset(c.paths.images(), filepath.Dir(c.paths.abs(item.Path))))
	}
	if old != nil {
		if err := c.removeAsset(c.paths.images(), filepath.Dir(c.paths.abs(old.Path))); err != nil {
			return err
		}
	}
	return c.maybeDefaultImage(ctx, st, item, asDefault, len(all) == 0)
}

func (c *core) maybeDefaultImage(ctx context.Context, st *store.Store, i *mvm.ImageItem, asked, only bool) error {
	if !asked && !only || i.IsDefault {
		return nil
	}
	i.IsDefault = true
	return st.SetDefaultImage(ctx, i.ID)
}

// Remove removes images. One that VMs use is kept unless force is set.
func (o *ImageOperation) Remove(ctx context.Context, in ImageInput, force bool) (mvm.Batch[*mvm.ImageItem], error) {
	var batch mvm.Batch[*mvm.ImageItem]
	for _, sel := range in.Identifiers {
		i, err := o.Get(ctx, ImageInput{[]string{sel}})
		if err == nil {
			err = mvm.Wrap(o.core.removeImage(ctx, i, force), "remove image", i.Type+":"+i.Version)
		}
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.ImageItem]{Identifier: sel, Item: i, Err: err})
	}
	return batch, batch.Err()
}

func (c *core) removeImage(ctx context.Context, i *mvm.ImageItem, force bool) error {
	users, err := c.st.ListVMsUsing(ctx, store.UseImage, i.ID)
	if err != nil {
		return err
	}
	if err := inUse(users, force); err != nil {
		return err
	}
	if err := neededBySnapshots(ctx, c.st, store.UseImage, i.ID); err != nil && !force {
		return err
	}
	for _, v := range users { // forced: but never under a guest that runs from it
		if v.Status.Active() {
			return mvm.Errorf(mvm.ErrConflict, "%s runs from it", mvm.Quote(v.Name)).WithHint("stop it first with 'mvm vm stop %s'", v.Name)
		}
	}
	// Before the row: whoever is killed in between leaves no memory that nobody gives back.
	if err := c.paths.memory().Drop(i.ID); err != nil {
		return err
	}
	if err := c.st.DeleteImage(ctx, i.ID); err != nil {
		return err
	}
	return c.removeAsset(c.paths.images(), filepath.Dir(c.paths.abs(i.Path)))
}
