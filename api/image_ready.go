package api

import (
	"context"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/image"
	"github.com/mvmctl/mvm/internal/store"
)

// ImageInspect is an image with what is on the disk of it and who uses it.
type ImageInspect struct {
	Image   *mvm.ImageItem `json:"image"`
	Storage ImageStorage   `json:"storage"`
	VMs     []string       `json:"vms"`
}

// ImageStorage is what an image takes.
type ImageStorage struct {
	Path             string   `json:"path"`              // of the raw file, absolute
	UnpackedBytes    int64    `json:"unpacked_bytes"`    // of it on the disk; 0 where there is only the compressed file
	CompressedPath   string   `json:"compressed_path"`   // "" where there is none
	CompressedBytes  int64    `json:"compressed_bytes"`  //
	CompressionRatio *float64 `json:"compression_ratio"` // original by compressed
	Warm             bool     `json:"warm"`              // a VM can be made without unpacking
	ReadyClone       bool     `json:"ready_clone"`       // and, where disks are raw files, without copying
	MemoryBytes      int64    `json:"memory_bytes"`      // of a copy in a tmpfs, see the setting defaults.image warm_in
	DirectoryBytes   int64    `json:"directory_bytes"`   // all that it takes on the disk
}

// Inspect shows an image, what it takes and which VMs are made from it.
func (o *ImageOperation) Inspect(ctx context.Context, in ImageInput) (*ImageInspect, error) {
	i, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	c := o.core
	users, err := c.st.ListVMsUsing(ctx, store.UseImage, i.ID)
	if err != nil {
		return nil, err
	}
	res := &ImageInspect{Image: i, VMs: []string{}}
	for _, v := range users {
		res.VMs = append(res.VMs, v.Name)
	}
	path := c.paths.abs(i.Path)
	res.Storage = ImageStorage{Path: path, Warm: c.isUnpacked(i), ReadyClone: disk.Pool{Base: path}.Ready(), DirectoryBytes: usage(filepath.Dir(path)), CompressionRatio: i.CompressionRatio}
	if _, allocated, err := disk.Sizes(path); err == nil {
		res.Storage.UnpackedBytes = allocated
	}
	if file := c.paths.memory().Find(i.ID, path); file != "" {
		if _, allocated, err := disk.Sizes(file); err == nil {
			res.Storage.MemoryBytes = allocated
		}
	}
	if st, err := os.Stat(image.Packed(path)); err == nil {
		res.Storage.CompressedPath, res.Storage.CompressedBytes = image.Packed(path), st.Size()
	}
	return res, nil
}

// imagePresent tells whether what the store says of an image is on the disk.
func (c *core) imagePresent(i *mvm.ImageItem) bool {
	if c.isUnpacked(i) {
		return true
	}
	st, err := os.Stat(image.Packed(c.paths.abs(i.Path)))
	return err == nil && i.CompressedSize != nil && st.Size() == *i.CompressedSize
}

// isUnpacked tells whether VMs can be made of an image as it is. A file of another
// size than the image has is not trusted where it can be made again.
func (c *core) isUnpacked(i *mvm.ImageItem) bool {
	st, err := os.Stat(c.paths.abs(i.Path))
	return err == nil && (i.CompressedFormat == nil || st.Size() == i.OriginalSize)
}

// unpack sees to it that an image is there as a raw file: it is compressed until
// somebody uses it. Of several commands one unpacks and the others wait.
func (c *core) unpack(ctx context.Context, i *mvm.ImageItem, progress mvm.ProgressFunc) error {
	if c.isUnpacked(i) {
		return nil
	}
	if i.CompressedFormat == nil {
		return mvm.Errorf(mvm.ErrBroken, "its file is gone").On("use image", i.Type+":"+i.Version).WithHint("get it again with --force")
	}
	unlock, err := c.lockAsset(ctx, "unpack-"+i.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if c.isUnpacked(i) {
		return nil
	}
	path := c.paths.abs(i.Path)
	if _, err := os.Lstat(path); err == nil {
		users, err := c.st.ListVMsUsing(ctx, store.UseImage, i.ID)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return mvm.Errorf(mvm.ErrBroken, "its file has another size than it was made with, and VMs stand on it").On("use image", i.Type+":"+i.Version).
				WithHint("somebody changed %s; put it back, or remove the VMs", path)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	name := i.Type + ":" + i.Version
	err = image.Unpack(ctx, path, i.OriginalSize, func(n int64) {
		if progress != nil {
			progress(mvm.ProgressEvent{Phase: "unpack", Message: "unpacking " + name, Current: n, Total: i.OriginalSize})
		}
	})
	return mvm.Wrap(err, "unpack image", name)
}

// Warm has images ready for VMs: unpacked, in the host's memory as far as there is
// room, and where disks are raw files and the file system does not share blocks,
// with a clone that the next VM takes; where the setting defaults.image warm_in says so,
// also with a copy in a tmpfs. Without a name it is the default image; all takes every
// one. It returns the files.
func (o *ImageOperation) Warm(ctx context.Context, in ImageInput, all bool, opts ...Option) ([]string, error) {
	c := o.core
	st, set, err := c.openSet(ctx)
	if err != nil {
		return nil, err
	}
	items, err := o.toWarm(ctx, st, in, all)
	if err != nil {
		return nil, err
	}
	raw, inMemory := c.wantsRawDisks(ctx, st), set.str("defaults.image", "warm_in") == "tmpfs"
	if inMemory && !raw {
		c.notice("VMs have overlays here, which stand on the image on the disk: there is no copy in the tmpfs, which only raw disks are made of")
		inMemory = false
	}
	paths := []string{}
	for _, i := range items {
		path := c.paths.abs(i.Path)
		err := c.unpack(ctx, i, options(opts).progress)
		if err == nil {
			err = c.keepInMemory(ctx, i, inMemory)
		}
		if err == nil && raw {
			err = disk.Pool{Base: path, Copy: c.paths.memory().Find(i.ID, path)}.Refill(ctx)
		}
		if err != nil {
			return paths, mvm.Wrap(err, "warm image", i.Type+":"+i.Version)
		}
		disk.Preload(path)
		paths = append(paths, path)
	}
	return paths, nil
}

// keepInMemory has a copy of an image in the tmpfs, or none. It takes no more than half of
// the memory that there is: what is in a tmpfs is not given back when others need it.
func (c *core) keepInMemory(ctx context.Context, i *mvm.ImageItem, keep bool) error {
	memory, path := c.paths.memory(), c.paths.abs(i.Path)
	if !keep {
		return memory.Drop(i.ID)
	}
	_, need, err := disk.Sizes(path)
	if err != nil {
		return err
	}
	if memory.Find(i.ID, path) == "" {
		if err := fitsMemory(need, int64(host.MemAvailableMiB())<<20); err != nil {
			return err
		}
	}
	return memory.Keep(ctx, i.ID, path)
}

func fitsMemory(need, free int64) error {
	if need <= free/2 {
		return nil
	}
	return mvm.Errorf(mvm.ErrUnavailable, "a copy in the tmpfs takes %d MiB, more than half of the %d MiB of memory that are free", need>>20, free>>20).
		WithHint("stop VMs, or run 'mvm config set defaults.image warm_in disk'")
}

func (o *ImageOperation) toWarm(ctx context.Context, st *store.Store, in ImageInput, all bool) ([]*mvm.ImageItem, error) {
	if len(in.Identifiers) > 0 {
		if all {
			return nil, mvm.Errorf(mvm.ErrInvalid, "all images, and some by name").WithHint("leave out the names, or --all")
		}
		var items []*mvm.ImageItem
		for _, sel := range in.Identifiers {
			i, err := o.Get(ctx, ImageInput{[]string{sel}})
			if err != nil {
				return nil, err
			}
			items = append(items, i)
		}
		return items, nil
	}
	images, err := o.core.images(ctx, st)
	if err != nil {
		return nil, err
	}
	var items []*mvm.ImageItem
	for _, i := range images {
		if i.IsPresent && (all || i.IsDefault) {
			items = append(items, i)
		}
	}
	if len(items) == 0 && !all {
		return nil, mvm.Errorf(mvm.ErrNotFound, "there is no default image").WithHint("name one, or take --all; 'mvm image ls' shows them")
	}
	return items, nil
}

// wantsRawDisks tells whether the VMs that are made without a word about it have raw
// disks. Where no hypervisor is usable nobody needs a clone either.
func (c *core) wantsRawDisks(ctx context.Context, st *store.Store) bool {
	set, err := loadSettings(ctx, st)
	if err != nil {
		return false
	}
	_, probe, _, err := c.chooseDriver(ctx, st, firstOf(set.str("settings.vm", "hypervisor"), "auto"), "", "")
	return err == nil && !probe.Capabilities.Qcow2
}
