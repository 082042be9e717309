package api

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// CacheOperation frees what the cache holds and nobody needs.
type CacheOperation struct{ core *core }

// PruneInput says how far pruning goes.
type PruneInput struct {
	DryRun bool // only tell
	All    bool // VMs: those that run too; images and kernels: the default ones too
}

// PruneResult is what was removed, or with DryRun would be.
type PruneResult struct {
	Removed []string `json:"removed"`
	Bytes   int64    `json:"freed_bytes"` // on the disk; what files share is counted with each
}

// Prune removes all VMs but those that run or start, or are about to by their
// restart policy; with All those too, at once. What cannot be removed is told in the error, beside the rest.
func (o *VMOperation) Prune(ctx context.Context, in PruneInput, opts ...Option) (*PruneResult, error) {
	c := o.core
	vms, err := o.ListAll(ctx)
	if err != nil {
		return nil, err
	}
	spare := []mvm.VMStatus{mvm.StatusRunning, mvm.StatusStarting}
	if in.All {
		spare = nil
	}
	progress := options(opts).progress
	res := &PruneResult{Removed: []string{}}
	var errs []error
	for _, vm := range vms {
		if slices.Contains(spare, vm.Status) || !in.All && waitsForRestart(vm) {
			continue
		}
		size := usage(c.paths.vm(vm.ID))
		if !in.DryRun {
			if err := c.requireRoot("removing VMs"); err != nil {
				return res, err
			}
			progress.Send("remove", "removing "+vm.Name)
			if err := c.removeVM(ctx, vm, spare); err != nil {
				errs = append(errs, mvm.Wrap(err, "remove VM", vm.Name))
				continue
			}
		}
		res.Removed, res.Bytes = append(res.Removed, vm.Name), res.Bytes+size
	}
	return res, errors.Join(errs...)
}

// PruneVMs is VM.Prune.
func (o *CacheOperation) PruneVMs(ctx context.Context, in PruneInput, opts ...Option) (*PruneResult, error) {
	return (&VMOperation{o.core}).Prune(ctx, in, opts...)
}

// PruneImages removes the images that no VM was made from. The default one is
// kept unless All is set; one in use is kept always.
func (o *CacheOperation) PruneImages(ctx context.Context, in PruneInput) (*PruneResult, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	images, err := st.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	assets := make([]unused, 0, len(images))
	for _, i := range images {
		assets = append(assets, unused{i.Type + ":" + i.Version, i.ID, i.Path, i.IsDefault, func() error { return c.removeImage(ctx, i, false) }})
	}
	return c.pruneAssets(ctx, in, "image", store.UseImage, assets)
}

// PruneKernels removes the kernels that no VM boots. The default one is kept
// unless All is set; one in use is kept always.
func (o *CacheOperation) PruneKernels(ctx context.Context, in PruneInput) (*PruneResult, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	kernels, err := st.ListKernels(ctx)
	if err != nil {
		return nil, err
	}
	assets := make([]unused, 0, len(kernels))
	for _, k := range kernels {
		assets = append(assets, unused{k.Type + ":" + k.Version, k.ID, k.Path, k.IsDefault, func() error { return c.removeKernel(ctx, k, false) }})
	}
	return c.pruneAssets(ctx, in, "kernel", store.UseKernel, assets)
}

// PruneBinaries removes the releases that no VM runs on. The default one is kept
// unless All is set; one in use is kept always, and so is the host's QEMU.
func (o *CacheOperation) PruneBinaries(ctx context.Context, in PruneInput) (*PruneResult, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	binaries, err := c.binaryItems(ctx, st)
	if err != nil {
		return nil, err
	}
	res := &PruneResult{Removed: []string{}}
	var errs []error
	for _, b := range binaries {
		users, err := st.ListVMsUsing(ctx, store.UseBinary, b.ID)
		if err != nil {
			return res, err
		}
		if len(users) > 0 || b.IsDefault && !in.All {
			continue
		}
		size := usage(c.paths.abs(b.Path))
		if !in.DryRun {
			if err := c.removeBinary(ctx, b, false); err != nil {
				errs = append(errs, mvm.Wrap(err, "remove binary", b.Name+":"+b.Version))
				continue
			}
		}
		res.Removed, res.Bytes = append(res.Removed, b.Name+":"+b.Version), res.Bytes+size
	}
	return res, errors.Join(errs...)
}

// unused is an image or kernel that may be pruned.
type unused struct {
	name, id, path string
	isDefault      bool
	remove         func() error
}

func (c *core) pruneAssets(ctx context.Context, in PruneInput, what string, use store.Use, assets []unused) (*PruneResult, error) {
	res := &PruneResult{Removed: []string{}}
	var errs []error
	for _, a := range assets {
		users, err := c.st.ListVMsUsing(ctx, use, a.id)
		if err != nil {
			return res, err
		}
		if len(users) > 0 || a.isDefault && !in.All || neededBySnapshots(ctx, c.st, use, a.id) != nil {
			continue
		}
		size := usage(filepath.Dir(c.paths.abs(a.path)))
		if !in.DryRun {
			if err := a.remove(); err != nil {
				errs = append(errs, mvm.Wrap(err, "remove "+what, a.name))
				continue
			}
		}
		res.Removed, res.Bytes = append(res.Removed, a.name), res.Bytes+size
	}
	return res, errors.Join(errs...)
}

// usage is how many bytes a directory's files take on the disk.
func usage(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what cannot be read is not counted
		}
		if fi, err := d.Info(); err == nil {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				sum += st.Blocks * 512 // stat(2): in units of 512 bytes, always
			}
		}
		return nil
	})
	return sum
}
