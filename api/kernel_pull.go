package api

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/kernel"
	"github.com/mvmctl/mvm/internal/store"
)

// Pull gets a kernel. Type debian is the distribution's own cloud kernel, from
// the host's package mirror; it is not installed on the host. Type firecracker is
// one that Firecracker's own tests run with. Type official is built from the source
// of kernel.org, or of the distribution.
func (o *KernelOperation) Pull(ctx context.Context, in KernelPullInput, opts ...Option) (*mvm.KernelPullResult, error) {
	c, progress := o.core, options(opts).progress
	in.KernelType = firstOf(in.KernelType, kernelDebian)
	if err := checkKernelPull(in); err != nil {
		return nil, mvm.Wrap(err, "pull kernel", in.KernelType)
	}
	st, set, err := c.openSet(ctx)
	if err != nil {
		return nil, err
	}
	unlock, err := c.lockAsset(ctx, "kernel-"+in.KernelType)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := c.kernels(ctx, st)
	if err != nil {
		return nil, err
	}
	switch in.KernelType {
	case kernelFirecracker:
		return c.pullCIKernel(ctx, st, in, set, all, progress)
	case kernelOfficial:
		return c.buildKernel(ctx, st, in, set, all, progress)
	}
	for _, k := range all {
		if !in.Force && k.Type == kernelDebian && k.IsPresent && (in.Version == "" || in.Version == k.Version) {
			return pullResult(k, "kernel "+k.Type+":"+k.Version+" is there already"), c.maybeDefaultKernel(ctx, st, k, in.SetDefault, len(all) == 1)
		}
	}
	got, err := kernel.Debian(ctx, kernel.DebianOptions{Runner: c.runner, WorkDir: c.paths.downloads(), DestDir: c.paths.kernels(), Version: in.Version, Progress: progress})
	if err != nil {
		return nil, mvm.Wrap(err, "pull kernel", in.KernelType)
	}
	item := &mvm.KernelItem{
		Version: got.Version, Arch: got.Arch, Type: kernelDebian, Path: c.paths.rel(got.Vmlinux), ModulesPath: c.paths.rel(got.ModulesDir),
		Provenance: mvm.Provenance{Source: got.Package + "=" + got.PackageVersion, Verification: mvm.VerifiedPackage},
	}
	return c.registerKernel(ctx, st, item, all, in.SetDefault, nil, []string{"extracted the uncompressed image of " + got.Package})
}

// checkKernelPull refuses what no kernel of the type can be.
func checkKernelPull(in KernelPullInput) error {
	built := map[string]bool{
		"--jobs": in.Jobs != 0, "--keep-build-dir": in.KeepBuildDir, "--clean-build": in.CleanBuild, "--config": in.KernelConfig != "",
		"--features": len(in.Features) > 0, "--base": in.Base != "", "--source": in.Source != "",
	}
	refuse := func(flag string) error {
		return mvm.Errorf(mvm.ErrInvalid, "%s is not for kernels of type %s", flag, in.KernelType).WithHint("leave it out; 'mvm kernel pull --help' says what is for which type")
	}
	switch in.KernelType {
	case kernelOfficial:
		if in.Checksum != "" {
			return refuse("--checksum")
		}
		if in.Jobs < 0 || in.Jobs > 1024 {
			return mvm.Errorf(mvm.ErrInvalid, "%d jobs are not possible", in.Jobs).WithHint("set --jobs to a number from 1 to 1024")
		}
		return kernel.CheckFeatures(in.Features)
	case kernelFirecracker, kernelDebian:
		for _, flag := range []string{"--jobs", "--keep-build-dir", "--clean-build", "--config", "--features", "--base", "--source"} {
			if built[flag] {
				return refuse(flag)
			}
		}
		if in.KernelType == kernelDebian && in.SkipChecksum {
			return refuse("--skip-checksum")
		}
		if in.KernelType == kernelDebian && in.Checksum != "" {
			return refuse("--checksum")
		}
		_, err := asset.ParseDigest(in.Checksum)
		return err
	}
	return mvm.Errorf(mvm.ErrInvalid, "there are no kernels of type %s", mvm.Quote(in.KernelType)).
		WithHint("use firecracker, official or debian, or bring a file with 'mvm kernel import'")
}

func (c *core) pullCIKernel(ctx context.Context, st *store.Store, in KernelPullInput, set settings, all []*mvm.KernelItem, progress mvm.ProgressFunc) (*mvm.KernelPullResult, error) {
	o := c.ciOptions(in.Arch, set, in.NoCache || in.Force, progress)
	o.Version, o.SkipChecksum = in.Version, in.SkipChecksum
	o.Digest, _ = asset.ParseDigest(in.Checksum) // was checked
	got, err := kernel.FetchCI(ctx, o)
	if err != nil {
		return nil, err
	}
	if got.Verification == mvm.VerifiedNot {
		got.Warnings = append(got.Warnings, "nothing says that this kernel is the one that Firecracker's tests run: its checksum was skipped")
	}
	return c.registerKernel(ctx, st, c.kernelItem(kernelFirecracker, got), all, in.SetDefault, got.Warnings, got.Info)
}

func (c *core) ciOptions(arch string, set settings, noCache bool, progress mvm.ProgressFunc) kernel.CIOptions {
	return kernel.CIOptions{
		Series: set.str("defaults.firecracker", "version"), Arch: arch, TTL: time.Duration(set.num("defaults.kernel", "remote_list_cache_ttl")) * time.Second,
		Fetcher: c.fetcher(progress, noCache), DestDir: c.paths.kernels(), Progress: progress,
	}
}

func (c *core) buildKernel(ctx context.Context, st *store.Store, in KernelPullInput, set settings, all []*mvm.KernelItem, progress mvm.ProgressFunc) (*mvm.KernelPullResult, error) {
	version := in.Version
	if version == "" && in.Source != kernel.SourcePackage {
		version = set.str("defaults.kernel", "version")
	}
	jobs := in.Jobs
	if jobs == 0 {
		jobs = set.num("defaults.kernel", "build_jobs")
	}
	got, err := kernel.Build(ctx, kernel.BuildOptions{
		Version: version, Arch: in.Arch, Source: in.Source, Base: in.Base, Config: in.KernelConfig, Features: in.Features,
		Jobs: jobs, Clean: in.CleanBuild || in.Force, Keep: in.KeepBuildDir, SkipChecksum: in.SkipChecksum,
		Runner: c.runner, Fetcher: c.fetcher(progress, in.NoCache), WorkDir: c.paths.downloads(), BuildDir: filepath.Join(c.paths.temp, "build"),
		LogDir: filepath.Join(c.paths.cache, "logs"), DestDir: c.paths.kernels(), Progress: progress,
	})
	if err != nil {
		return nil, err
	}
	return c.registerKernel(ctx, st, c.kernelItem(kernelOfficial, got), all, in.SetDefault, got.Warnings, got.Info)
}

func (c *core) kernelItem(typ string, b kernel.Built) *mvm.KernelItem {
	return &mvm.KernelItem{Version: b.Version, Arch: b.Arch, Type: typ, Path: c.paths.rel(b.Path), Provenance: b.Provenance}
}

// registerKernel puts a kernel that was got into the store. One of its type, version
// and architecture that is there keeps its id, for the VMs that refer to it, and
// loses the files that it had.
func (c *core) registerKernel(ctx context.Context, st *store.Store, item *mvm.KernelItem, all []*mvm.KernelItem, asDefault bool, warnings, info []string) (*mvm.KernelPullResult, error) {
	item.ID, item.IsPresent, item.CreatedAt, item.UpdatedAt = newID(), true, now(), now()
	item.BaseName = "vmlinux-" + item.Type
	item.Name = item.BaseName + "-" + item.Version
	var old string
	for _, k := range all {
		if k.Type == item.Type && k.Version == item.Version && k.Arch == item.Arch {
			item.ID, item.CreatedAt, item.IsDefault, old = k.ID, k.CreatedAt, k.IsDefault, k.Path
		}
	}
	if err := st.UpsertKernel(ctx, item); err != nil {
		return nil, err
	}
	if old != "" && old != item.Path {
		if err := c.removeAsset(c.paths.kernels(), filepath.Dir(c.paths.abs(old))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if err := c.maybeDefaultKernel(ctx, st, item, asDefault, len(all) == 0); err != nil {
		return nil, err
	}
	res := pullResult(item, info...)
	res.Warnings = append(res.Warnings, warnings...)
	return res, nil
}

func pullResult(k *mvm.KernelItem, info ...string) *mvm.KernelPullResult {
	return &mvm.KernelPullResult{
		Path: k.Path, Version: k.Version, Arch: k.Arch, KernelType: k.Type, Warnings: []string{}, InfoMessages: append([]string{}, info...), Item: k,
	}
}

// KernelRemoteInput says which kernels to list that can be pulled.
type KernelRemoteInput struct {
	Type    string // "firecracker" or "official"; "" is both
	Arch    string
	Limit   int // per type; 0 takes defaults.kernel remote_list_limit
	NoCache bool
}

// ListRemote lists the kernels that can be pulled, the newest first within a type.
// What one upstream does not tell is in the error, beside what the other does.
func (o *KernelOperation) ListRemote(ctx context.Context, in KernelRemoteInput, opts ...Option) ([]mvm.VersionInfo, error) {
	c, progress := o.core, options(opts).progress
	if in.Type != "" && in.Type != kernelFirecracker && in.Type != kernelOfficial {
		return nil, mvm.Errorf(mvm.ErrInvalid, "kernels of type %s are not listed", mvm.Quote(in.Type)).WithHint("use firecracker or official")
	}
	st, set, err := c.openSet(ctx)
	if err != nil {
		return nil, err
	}
	have, err := c.kernels(ctx, st)
	if err != nil {
		return nil, err
	}
	limit := in.Limit
	if limit == 0 {
		limit = set.num("defaults.kernel", "remote_list_limit")
	}
	list := []mvm.VersionInfo{}
	var errs []error
	add := func(typ string, versions []mvm.VersionInfo, err error) {
		errs = append(errs, err)
		for _, v := range versions[:min(len(versions), limit)] {
			v.Type = typ
			for _, k := range have {
				v.IsPresent = v.IsPresent || k.Type == typ && k.Version == v.Version && k.IsPresent
			}
			list = append(list, v)
		}
	}
	if in.Type != kernelOfficial {
		versions, err := c.remoteCI(ctx, in, set, progress)
		add(kernelFirecracker, versions, err)
	}
	if in.Type != kernelFirecracker {
		ttl := time.Duration(set.num("defaults.kernel", "remote_list_cache_ttl")) * time.Second
		versions, err := kernel.ListReleases(ctx, c.fetcher(progress, in.NoCache), ttl)
		add(kernelOfficial, versions, err)
	}
	return list, errors.Join(errs...)
}

func (c *core) remoteCI(ctx context.Context, in KernelRemoteInput, set settings, progress mvm.ProgressFunc) ([]mvm.VersionInfo, error) {
	all, err := kernel.ListCI(ctx, c.ciOptions(in.Arch, set, in.NoCache, progress))
	var list []mvm.VersionInfo
	for _, k := range all {
		note := ""
		if k.SumURL == "" {
			note = "no checksum"
		}
		list = append(list, mvm.VersionInfo{Version: k.Version, Released: k.Modified.Format(time.DateOnly), Note: note, Source: k.URL, Bytes: k.Bytes})
	}
	return list, err
}

// Inspect returns a kernel with what its file says of itself.
func (o *KernelOperation) Inspect(ctx context.Context, in KernelInput) (*KernelInspect, error) {
	k, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	res := &KernelInspect{Kernel: k, VMs: []string{}}
	users, err := o.core.st.ListVMsUsing(ctx, store.UseKernel, k.ID)
	if err != nil {
		return nil, err
	}
	for _, vm := range users {
		res.VMs = append(res.VMs, vm.Name)
	}
	if !k.IsPresent {
		return res, nil
	}
	info, err := kernel.Inspect(o.core.paths.abs(k.Path))
	if err != nil {
		return nil, mvm.Wrap(err, "inspect kernel", k.Type+":"+k.Version)
	}
	res.File = &KernelFile{
		Format: string(info.Format), Bytes: info.Bytes, Says: info.Version, PVH: info.PVH, PVMGuest: info.PVMGuest(), Config: info.Config != nil,
	}
	res.Features = info.Features()
	return res, nil
}

// KernelFeatures returns the names that KernelPullInput.Features takes.
func KernelFeatures() string { return strings.Join(kernel.Features(), ", ") }
