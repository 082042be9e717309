package api

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/image"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// ImageImportInput is a file, or the disk of a VM, to make an image of.
type ImageImportInput struct {
	Name              string   // the image's type, by which it is selected
	SourcePath        string   // a file; or the name or id of a VM
	Format            string   // "auto", "qcow2", "raw", "tar-rootfs", "vhd", "vmdk", "squashfs"; "" takes defaults.image import_format
	Arch              string   // "" is the host's
	Partition         int      // number of the root partition; 0 has it found
	Version           string   // "" is "imported"
	DisabledDetectors []string // type, label, size, filesystem
	SkipOptimization  bool
	Force             bool // replace an image of that name and version
	SetDefault        bool
}

// importedVersion is the version of what was imported without one.
const importedVersion = "imported"

// Import makes an image of a file: a disk in qcow2, raw, VHD or VMDK, a tar archive
// or a squashfs, plain or compressed; or of the root disk of a VM that is stopped,
// or whose guest can be quiesced for it.
func (o *ImageOperation) Import(ctx context.Context, in ImageImportInput, opts ...Option) (*mvm.ImageItem, error) {
	item, err := o.core.importImage(ctx, in, options(opts).progress)
	return item, mvm.Wrap(err, "import image", in.Name)
}

func (c *core) importImage(ctx context.Context, in ImageImportInput, progress mvm.ProgressFunc) (*mvm.ImageItem, error) {
	version := firstOf(in.Version, importedVersion)
	if err := errors.Join(mvm.ValidateName("image", in.Name), validateImageVersion(version), image.CheckDetectors(in.DisabledDetectors)); err != nil {
		return nil, err
	}
	arch, err := unameArch(in.Arch)
	if err != nil {
		return nil, err
	}
	st, set, err := c.openSet(ctx)
	if err != nil {
		return nil, err
	}
	unlock, err := c.lockAsset(ctx, "image-"+in.Name+"-"+version)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := c.images(ctx, st)
	if err != nil {
		return nil, err
	}
	ref := image.Ref{Type: in.Name, Version: version}
	if err := c.mayReplace(ctx, st, all, ref, arch, in.Force); err != nil {
		return nil, err
	}
	opts := image.ImportOptions{
		Path: in.SourcePath, Format: firstOf(in.Format, set.str("defaults.image", "import_format")), Arch: arch, Partition: in.Partition,
		Disabled: in.DisabledDetectors, SkipOptimization: in.SkipOptimization, Progress: progress,
	}
	source, err := c.importSource(ctx, st, in.SourcePath, &opts)
	if err != nil {
		return nil, err
	}
	item, err := c.intake(ctx, ref, opts)
	if err != nil {
		return nil, err
	}
	item.Name = in.Name
	item.Provenance = mvm.Provenance{Source: source, Verification: mvm.VerifiedLocal}
	return item, c.registerImage(ctx, st, all, item, in.SetDefault)
}

// intake has a file made an image and describes the result; it is in the cache, and
// not in the store.
func (c *core) intake(ctx context.Context, ref image.Ref, o image.ImportOptions) (*mvm.ImageItem, error) {
	id := newID()
	o.Runner, o.Dest = c.runner, filepath.Join(c.paths.images(), id)
	got, err := image.Import(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, w := range got.Warnings {
		c.notice(w)
	}
	item := &mvm.ImageItem{
		ID: id, Type: ref.Type, Version: ref.Version, Name: ref.String(), Arch: got.Arch, Path: c.paths.rel(got.Path), FSType: got.FSType,
		MinimumRootfsSizeMiB: got.MinimumMiB, OriginalSize: got.SizeBytes, IsPresent: true, PulledAt: now(), CreatedAt: now(), UpdatedAt: now(),
		Distro: optional(got.Distro), FSUUID: optional(got.UUID), FSSubvolume: optional(got.Subvolume),
	}
	if got.PackedBytes > 0 {
		ratio := float64(got.SizeBytes) / float64(got.PackedBytes)
		item.CompressedSize, item.CompressionRatio, item.CompressedFormat = &got.PackedBytes, &ratio, optional(image.PackedFormat)
	}
	return item, nil
}

// mayReplace refuses a name that is taken, unless force replaces it; and then one
// that VMs stand on.
func (c *core) mayReplace(ctx context.Context, st *store.Store, all []*mvm.ImageItem, ref image.Ref, arch string, force bool) error {
	for _, i := range all {
		if i.Type == ref.Type && i.Version == ref.Version && i.Arch == arch && !force {
			return mvm.Errorf(mvm.ErrExists, "there is an image %s already", mvm.Quote(ref.String())).
				WithHint("choose another --version, or replace it with --force")
		}
	}
	return c.replaceable(ctx, st, all, ref)
}

// validateImageVersion keeps versions to what selectors and file names take.
func validateImageVersion(v string) error {
	ok := v != "" && len(v) <= 64 && !strings.HasPrefix(v, ".") && !strings.HasPrefix(v, "-") && !strings.ContainsFunc(v, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._+~-", r)
	})
	if ok {
		return nil
	}
	return mvm.Errorf(mvm.ErrInvalid, "%s is no version", mvm.Quote(v)).WithHint("use up to 64 letters, digits, dots and hyphens")
}

// importSource has o read the file that is named, or where there is none of that name,
// a copy of the VM's disk. source is what it is called.
func (c *core) importSource(ctx context.Context, st *store.Store, name string, o *image.ImportOptions) (source string, err error) {
	if name == "" {
		return "", mvm.Errorf(mvm.ErrInvalid, "there is nothing named to import").WithHint("name a file or a VM")
	}
	if _, err := os.Stat(name); err == nil || strings.ContainsRune(name, '/') {
		return filepath.Abs(name)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", mvm.Errorf(mvm.ErrUnavailable, "%s cannot be read: %w", name, err).WithHint("check the path")
	}
	vms, err := st.ListVMs(ctx)
	if err != nil {
		return "", err
	}
	vm, err := pick("VM", name, "see 'mvm vm ls'", vmCandidates(vms))
	if errors.Is(err, mvm.ErrNotFound) {
		return "", mvm.Errorf(mvm.ErrNotFound, "there is neither a file nor a VM %s", mvm.Quote(name)).WithHint("check the path, and see 'mvm vm ls'")
	}
	if err != nil {
		return "", err
	}
	o.Format = disk.Raw
	o.Make = func(ctx context.Context, dir string) (string, error) { return c.copyOfDisk(ctx, vm, dir) }
	return "VM " + vm.Name, nil
}

// copyOfDisk makes a raw copy of a VM's root disk in a directory, as it is at one
// moment, for which a guest that runs is quiesced.
func (c *core) copyOfDisk(ctx context.Context, vm *mvm.VMInstanceItem, dir string) (string, error) {
	format, clone := diskFormat(vm.RootfsSuffix), filepath.Join(dir, "clone")
	if err := c.cloneStill(ctx, vm, format, clone); err != nil || format != disk.Qcow2 {
		return clone, err
	}
	raw := filepath.Join(dir, "raw")
	return raw, disk.Flatten(ctx, c.runner, clone, c.paths.cache, raw)
}

// cloneStill copies a VM's root disk while nobody writes to it: nobody starts a VM
// that is stopped meanwhile, and one that runs writes out its file systems and stands
// still until the copy is made.
func (c *core) cloneStill(ctx context.Context, vm *mvm.VMInstanceItem, format, to string) error {
	if !mvm.TransitionOf(mvm.VerbUpdate).Allows(vm.Status) {
		return refusal(mvm.VerbUpdate, vm)
	}
	undo, err := json.Marshal(claimed{vm.Status, vm.StatusReason})
	if err != nil {
		return err
	}
	running := vm.Status == mvm.StatusRunning
	steps := []op.Step{
		&holdStep{c: c, VMID: vm.ID, WasRunning: running, take: &capture{c: c, vm: vm}},
		&cloneStep{Path: to, from: vm.RootfsPath, format: format},
	}
	if running {
		steps = append(steps, &releaseStep{c: c, VMID: vm.ID})
	}
	return c.journal.Run(ctx, op.Op{
		Kind: "vm." + string(mvm.VerbUpdate), Subject: vm.Name, SubjectID: vm.ID, UndoData: undo, Steps: steps,
		Reserve: func(tx *store.Tx) error {
			before, err := tx.ClaimVM(ctx, vm.ID, mvm.VerbUpdate)
			if err != nil {
				return err
			}
			if before.Status != vm.Status {
				return mvm.Errorf(mvm.ErrConflict, "it is %s by now", before.Status).WithHint("see 'mvm vm ls', then try again")
			}
			refresh(vm, before)
			return nil
		},
		Commit: func(tx *store.Tx) error { return settle(ctx, tx, vm, vm.Status, "an image was made of its disk") },
	})
}
