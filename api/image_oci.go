package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/image/oci"
)

// pullContainer gets a container image. One that is there is kept while its source has
// the same.
func (o *ImageOperation) pullContainer(ctx context.Context, in ImagePullInput, progress mvm.ProgressFunc) (*mvm.ImageItem, error) {
	item, err := o.core.pullContainer(ctx, in, progress)
	return item, mvm.Wrap(err, "pull image", in.Type)
}

func (c *core) pullContainer(ctx context.Context, in ImagePullInput, progress mvm.ProgressFunc) (*mvm.ImageItem, error) {
	ref, err := oci.ParseRef(in.Type)
	if err != nil {
		return nil, err
	}
	if in.Version != "" {
		return nil, mvm.Errorf(mvm.ErrInvalid, "the version of a container image is its tag").WithHint("write it behind the name: %s:%s", in.Type, in.Version)
	}
	arch, err := unameArch(in.Arch)
	if err != nil {
		return nil, err
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(ref.String()))
	unlock, err := c.lockAsset(ctx, "image-oci-"+hex.EncodeToString(sum[:8]))
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := c.images(ctx, st)
	if err != nil {
		return nil, err
	}
	id := newID()
	opts := oci.Options{
		Runner: c.runner, Dest: filepath.Join(c.paths.images(), id), Arch: arch, Insecure: in.Insecure,
		Mirror: envOr(c.cfg.AssetMirror, "MVM_ASSET_MIRROR"), Progress: progress,
	}
	if typ, version, ok := ref.TypeVersion(); ok && !in.Force {
		for _, i := range all {
			if i.Type == typ && i.Version == version && i.Arch == arch && i.IsPresent {
				opts.Have = i.Digest
			}
		}
	}
	got, err := oci.Pull(ctx, ref, opts)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if !in.Force && i.Type == got.Type && i.Version == got.Version && i.Arch == got.Arch && i.Digest == got.Digest && i.IsPresent {
			if got.Path != "" { // of a file that had to be read first
				if err := c.removeAsset(c.paths.images(), filepath.Dir(got.Path)); err != nil {
					return nil, err
				}
			}
			return i, c.maybeDefaultImage(ctx, st, i, in.SetDefault, len(all) == 1)
		}
	}
	item := &mvm.ImageItem{
		ID: id, Type: got.Type, Version: got.Version, Name: strings.TrimPrefix(got.Type, oci.Scheme) + ":" + got.Version, Arch: got.Arch, Path: c.paths.rel(got.Path), FSType: "ext4",
		MinimumRootfsSizeMiB: int((got.SizeBytes + 1<<20 - 1) >> 20), OriginalSize: got.SizeBytes, IsPresent: true,
		PulledAt: now(), CreatedAt: now(), UpdatedAt: now(), Distro: optional(got.Distro), FSUUID: optional(got.UUID), Container: got.Container,
		Provenance: mvm.Provenance{Source: got.Source, Digest: got.Digest, Verification: got.Verification},
	}
	return item, c.registerImage(ctx, st, all, item, in.SetDefault)
}

// unameArch is an architecture as items have it; "" is the host's.
func unameArch(arch string) (string, error) {
	if arch == "" {
		arch = runtime.GOARCH
	}
	for uname, goName := range goArch {
		if arch == uname || arch == goName {
			return uname, nil
		}
	}
	return "", mvm.Errorf(mvm.ErrInvalid, "%s is no architecture that guests can have", mvm.Quote(arch)).WithHint("use amd64 or arm64")
}

// imageSelector writes the name of a container image as its item has it.
func imageSelector(s string) string {
	if !oci.IsRef(s) {
		return s
	}
	ref, err := oci.ParseRef(s)
	if err != nil {
		return s
	}
	if typ, version, ok := ref.TypeVersion(); ok {
		return typ + ":" + version
	}
	return s
}
