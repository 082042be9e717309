package store

import (
	"context"

	"github.com/mvmctl/mvm"
)

var images = table[mvm.ImageItem]{
	name: "images", noun: "image", soft: true,
	cols: []string{"id", "type", "version", "name", "arch", "path", "fs_type", "minimum_rootfs_size_mib", "original_size", "is_default",
		"is_present", "pulled_at", "created_at", "updated_at", "distro", "fs_uuid", "compressed_size", "compression_ratio",
		"compressed_format", "deleted_at", "source", "digest", "verification", "signed_by", "container",
		"fs_subvolume"},
	fields: func(i *mvm.ImageItem) []any {
		return []any{&i.ID, &i.Type, &i.Version, &i.Name, &i.Arch, &i.Path, &i.FSType, &i.MinimumRootfsSizeMiB, &i.OriginalSize, &i.IsDefault,
			&i.IsPresent, &i.PulledAt, &i.CreatedAt, &i.UpdatedAt, &i.Distro, &i.FSUUID, &i.CompressedSize, &i.CompressionRatio,
			&i.CompressedFormat, &i.DeletedAt, &i.Source, &i.Digest, &i.Verification, &i.SignedBy, asJSON{&i.Container},
			&i.FSSubvolume}
	},
	stamp: func(i *mvm.ImageItem) []*string { return []*string{&i.CreatedAt, &i.UpdatedAt} },
	unique: map[string]taken{
		"images.type, images.version, images.arch": {cols: []string{"type", "version", "arch"}, what: "the image %s:%s (%s) exists already",
			hint: "use it, or replace it with --force"},
	},
}

// InsertImage adds an image. ErrExists when there is one of its type, version
// and architecture.
func (q Queries) InsertImage(ctx context.Context, i *mvm.ImageItem) error {
	return images.insert(ctx, q, i)
}

// UpsertImage adds an image or replaces the one with its id, also a deleted one.
func (q Queries) UpsertImage(ctx context.Context, i *mvm.ImageItem) error {
	return images.upsert(ctx, q, i)
}

// GetImage returns an image by id, also a deleted one, or ErrNotFound.
func (q Queries) GetImage(ctx context.Context, id string) (*mvm.ImageItem, error) {
	return images.get(ctx, q, id)
}

// ListImages returns the images that are not deleted, by type and version.
func (q Queries) ListImages(ctx context.Context) ([]*mvm.ImageItem, error) {
	return images.where(ctx, q, "deleted_at is null order by type, version, arch")
}

// UpdateImage writes all fields of an image but CreatedAt.
func (q Queries) UpdateImage(ctx context.Context, i *mvm.ImageItem) error {
	return images.update(ctx, q, i)
}

// DeleteImage marks an image deleted. One that is gone is no error.
func (q Queries) DeleteImage(ctx context.Context, id string) error { return images.remove(ctx, q, id) }

// SetDefaultImage makes an image the only default one.
func (q Queries) SetDefaultImage(ctx context.Context, id string) error {
	return images.setDefault(ctx, q, id)
}

var kernels = table[mvm.KernelItem]{
	name: "kernels", noun: "kernel", soft: true,
	cols: []string{"id", "name", "base_name", "version", "arch", "type", "path", "modules_path", "is_default", "is_present",
		"created_at", "updated_at", "deleted_at", "source", "digest", "verification", "signed_by", "pvm_guest"},
	fields: func(k *mvm.KernelItem) []any {
		return []any{&k.ID, &k.Name, &k.BaseName, &k.Version, &k.Arch, &k.Type, &k.Path, &k.ModulesPath, &k.IsDefault, &k.IsPresent,
			&k.CreatedAt, &k.UpdatedAt, &k.DeletedAt, &k.Source, &k.Digest, &k.Verification, &k.SignedBy, &k.PVMGuest}
	},
	stamp: func(k *mvm.KernelItem) []*string { return []*string{&k.CreatedAt, &k.UpdatedAt} },
	unique: map[string]taken{
		"kernels.type, kernels.version, kernels.arch, kernels.base_name": {cols: []string{"type", "version", "arch"},
			what: "the kernel %s:%s (%s) exists already", hint: "use it, or replace it with --force"},
	},
}

// InsertKernel adds a kernel. ErrExists when there is one of its type, version,
// architecture and base name.
func (q Queries) InsertKernel(ctx context.Context, k *mvm.KernelItem) error {
	return kernels.insert(ctx, q, k)
}

// UpsertKernel adds a kernel or replaces the one with its id, also a deleted one.
func (q Queries) UpsertKernel(ctx context.Context, k *mvm.KernelItem) error {
	return kernels.upsert(ctx, q, k)
}

// GetKernel returns a kernel by id, also a deleted one, or ErrNotFound.
func (q Queries) GetKernel(ctx context.Context, id string) (*mvm.KernelItem, error) {
	return kernels.get(ctx, q, id)
}

// ListKernels returns the kernels that are not deleted, by type and version.
func (q Queries) ListKernels(ctx context.Context) ([]*mvm.KernelItem, error) {
	return kernels.where(ctx, q, "deleted_at is null order by type, version, arch, base_name")
}

// UpdateKernel writes all fields of a kernel but CreatedAt.
func (q Queries) UpdateKernel(ctx context.Context, k *mvm.KernelItem) error {
	return kernels.update(ctx, q, k)
}

// DeleteKernel marks a kernel deleted. One that is gone is no error.
func (q Queries) DeleteKernel(ctx context.Context, id string) error {
	return kernels.remove(ctx, q, id)
}

// SetDefaultKernel makes a kernel the only default one.
func (q Queries) SetDefaultKernel(ctx context.Context, id string) error {
	return kernels.setDefault(ctx, q, id)
}

var binaries = table[mvm.BinaryItem]{
	name: "binaries", noun: "binary", soft: true,
	cols: []string{"id", "name", "version", "full_version", "ci_version", "path", "is_default", "is_present", "created_at", "updated_at", "deleted_at",
		"source", "digest", "verification", "signed_by"},
	fields: func(b *mvm.BinaryItem) []any {
		return []any{&b.ID, &b.Name, &b.Version, &b.FullVersion, &b.CIVersion, &b.Path, &b.IsDefault, &b.IsPresent, &b.CreatedAt, &b.UpdatedAt, &b.DeletedAt,
			&b.Source, &b.Digest, &b.Verification, &b.SignedBy}
	},
	stamp: func(b *mvm.BinaryItem) []*string { return []*string{&b.CreatedAt, &b.UpdatedAt} },
	unique: map[string]taken{
		"binaries.name, binaries.version": {cols: []string{"name", "version"}, what: "%s %s exists already",
			hint: "use it, or replace it with --force"},
	},
}

// InsertBinary adds a binary. ErrExists when there is one of its name and version.
func (q Queries) InsertBinary(ctx context.Context, b *mvm.BinaryItem) error {
	return binaries.insert(ctx, q, b)
}

// UpsertBinary adds a binary or replaces the one with its id, also a deleted one.
func (q Queries) UpsertBinary(ctx context.Context, b *mvm.BinaryItem) error {
	return binaries.upsert(ctx, q, b)
}

// GetBinary returns a binary by id, also a deleted one, or ErrNotFound.
func (q Queries) GetBinary(ctx context.Context, id string) (*mvm.BinaryItem, error) {
	return binaries.get(ctx, q, id)
}

// ListBinaries returns the binaries that are not deleted, by name and version.
func (q Queries) ListBinaries(ctx context.Context) ([]*mvm.BinaryItem, error) {
	return binaries.where(ctx, q, "deleted_at is null order by name, version")
}

// UpdateBinary writes all fields of a binary but CreatedAt.
func (q Queries) UpdateBinary(ctx context.Context, b *mvm.BinaryItem) error {
	return binaries.update(ctx, q, b)
}

// DeleteBinary marks a binary deleted. One that is gone is no error.
func (q Queries) DeleteBinary(ctx context.Context, id string) error {
	return binaries.remove(ctx, q, id)
}

// SetDefaultBinary makes a binary the only default one of its name.
func (q Queries) SetDefaultBinary(ctx context.Context, id string) error {
	return binaries.setDefault(ctx, q, id)
}
