package api

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/kernel"
	"github.com/mvmctl/mvm/internal/store"
)

// The types of kernel.
const (
	kernelFirecracker = "firecracker"
	kernelOfficial    = "official"
	kernelDebian      = "debian"
	kernelImported    = "imported"
)

// ListAll returns the kernels in the cache, newest first within a type.
func (o *KernelOperation) ListAll(ctx context.Context) ([]*mvm.KernelItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.core.kernels(ctx, st)
}

func (c *core) kernels(ctx context.Context, st *store.Store) ([]*mvm.KernelItem, error) {
	all, err := st.ListKernels(ctx)
	slices.SortStableFunc(all, func(a, b *mvm.KernelItem) int {
		if a.Type != b.Type {
			return compare(a.Type, b.Type)
		}
		return compareVersions(b.Version, a.Version)
	})
	for _, k := range all {
		_, statErr := os.Stat(c.paths.abs(k.Path))
		k.IsPresent = statErr == nil
	}
	return all, err
}

// Get returns one kernel.
func (o *KernelOperation) Get(ctx context.Context, in KernelInput) (*mvm.KernelItem, error) {
	sel, err := one("kernel", in.Identifiers)
	if err != nil {
		return nil, err
	}
	all, err := o.ListAll(ctx)
	if err != nil {
		return nil, err
	}
	return pick("kernel", sel, "see 'mvm kernel ls', or get one with 'mvm kernel pull debian'", kernelCandidates(all, o.core.paths))
}

// SetDefault makes a kernel the one that new VMs get.
func (o *KernelOperation) SetDefault(ctx context.Context, in KernelInput) (*mvm.KernelItem, error) {
	k, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	if err := o.core.st.SetDefaultKernel(ctx, k.ID); err != nil {
		return nil, err
	}
	return o.core.st.GetKernel(ctx, k.ID)
}

// maybeDefaultKernel makes a kernel the default when that was asked for, or when
// it is the only one.
func (c *core) maybeDefaultKernel(ctx context.Context, st *store.Store, k *mvm.KernelItem, asked, only bool) error {
	if !asked && !only || k.IsDefault {
		return nil
	}
	k.IsDefault = true
	return st.SetDefaultKernel(ctx, k.ID)
}

// Import takes over a kernel file, after seeing that a VMM can boot it.
func (o *KernelOperation) Import(ctx context.Context, in KernelImportInput, _ ...Option) (*mvm.KernelItem, error) {
	c := o.core
	if err := mvm.ValidateName("kernel", in.Name); err != nil {
		return nil, err
	}
	info, err := kernel.Inspect(in.SourcePath)
	if err != nil {
		return nil, mvm.Wrap(err, "import kernel", in.Name)
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	version := firstOf(in.Version, info.Version, "unknown")
	all, err := c.kernels(ctx, st)
	if err != nil {
		return nil, err
	}
	for _, k := range all {
		if k.Name == in.Name {
			return nil, mvm.Errorf(mvm.ErrExists, "a kernel of that name exists").On("import kernel", in.Name).WithHint("choose another name, or remove it with 'mvm kernel rm %s'", in.Name)
		}
	}
	id := newID()
	got, err := kernel.Import(ctx, in.SourcePath, filepath.Join(c.paths.kernels(), kernelImported+"-"+id))
	if err != nil {
		return nil, mvm.Wrap(err, "import kernel", in.Name)
	}
	if got.Warning != "" {
		c.notice(got.Warning)
	}
	item := &mvm.KernelItem{
		ID: id, Name: in.Name, BaseName: in.Name, Version: version, Arch: info.Arch, Type: kernelImported,
		Path: c.paths.rel(got.Path), IsPresent: true, CreatedAt: now(), UpdatedAt: now(),
		Provenance: mvm.Provenance{Source: in.SourcePath, Verification: mvm.VerifiedLocal},
		PVMGuest:   in.PVMGuest || got.Info.PVMGuest(),
	}
	if err := st.InsertKernel(ctx, item); err != nil {
		return nil, errors.Join(mvm.Wrap(err, "import kernel", in.Name), os.RemoveAll(filepath.Dir(got.Path)))
	}
	return item, c.maybeDefaultKernel(ctx, st, item, in.SetDefault, len(all) == 0)
}

// Remove removes kernels. One that VMs use is kept unless force is set.
func (o *KernelOperation) Remove(ctx context.Context, in KernelInput, force bool) (mvm.Batch[*mvm.KernelItem], error) {
	var batch mvm.Batch[*mvm.KernelItem]
	for _, sel := range in.Identifiers {
		k, err := o.Get(ctx, KernelInput{[]string{sel}})
		if err == nil {
			err = mvm.Wrap(o.core.removeKernel(ctx, k, force), "remove kernel", k.Type+":"+k.Version)
		}
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.KernelItem]{Identifier: sel, Item: k, Err: err})
	}
	return batch, batch.Err()
}

func (c *core) removeKernel(ctx context.Context, k *mvm.KernelItem, force bool) error {
	users, err := c.st.ListVMsUsing(ctx, store.UseKernel, k.ID)
	if err != nil {
		return err
	}
	if err := inUse(users, force); err != nil {
		return err
	}
	if err := neededBySnapshots(ctx, c.st, store.UseKernel, k.ID); err != nil && !force {
		return err
	}
	// The row goes first: a file without a row is only wasted space, which the
	// next pull takes over; a row without its file would be a lie.
	if err := c.st.DeleteKernel(ctx, k.ID); err != nil {
		return err
	}
	return c.removeAsset(c.paths.kernels(), filepath.Dir(c.paths.abs(k.Path)))
}
