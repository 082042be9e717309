package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/apt"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/run"
)

// kernelOrg is where kernel.org's releases are.
const kernelOrg = "https://cdn.kernel.org/pub/linux/kernel"

// maxSource bounds the archive of a kernel's source, in bytes; it has some 150 MB.
const maxSource = 1 << 30

// source is a kernel's source in an archive.
type source struct {
	archive string // tar.xz
	inDeb   string // the name of the archive in a package, "" when it is none
	version string // "6.19.9"
	key     string // tells sources of one version apart
	mvm.Provenance
}

// id names the source in the build directory.
func (s source) id() string { return "kernel-" + s.version }

var (
	releaseForm = regexp.MustCompile(`^([0-9]{1,3})\.[0-9]{1,4}(\.[0-9]{1,4})?$`)
	sourceForm  = regexp.MustCompile(`^linux-source-([0-9]+\.[0-9]+)$`)
)

func checkVersion(from, version string) error {
	if releaseForm.MatchString(version) || from == SourcePackage && version == "" {
		return nil
	}
	return mvm.Errorf(mvm.ErrInvalid, "%s is no version of a kernel's source", mvm.Quote(version)).
		WithHint("a version is like 6.19.9; 'mvm kernel ls --remote' lists them")
}

// source brings the archive of the source.
func (o *BuildOptions) source(ctx context.Context) (source, error) {
	if o.Source == SourcePackage {
		return o.sourcePackage(ctx)
	}
	series := releaseForm.FindStringSubmatch(o.Version)[1]
	dir := fmt.Sprintf("%s/v%s.x/", kernelOrg, series)
	got, err := o.Fetcher.Fetch(ctx, asset.File{
		URL: dir + "linux-" + o.Version + ".tar.xz", MaxBytes: maxSource, Unchecked: o.SkipChecksum,
		Sums: &asset.Sums{URL: dir + "sha256sums.asc", Signature: &asset.Signature{Upstream: "kernel.org"}},
	})
	if errors.Is(err, mvm.ErrUnavailable) && ctx.Err() == nil {
		return source{}, mvm.Errorf(mvm.ErrUnavailable, "%w", err).
			WithHint("check the network; --source package builds the kernel of the distribution's package mirror instead")
	}
	return source{archive: got.Path, version: o.Version, key: got.Digest, Provenance: got.Provenance}, err
}

// sourcePackage brings the distribution's package with the source of its kernel.
func (o *BuildOptions) sourcePackage(ctx context.Context) (source, error) {
	if err := os.MkdirAll(o.WorkDir, 0o755); err != nil {
		return source{}, unwritable(o.WorkDir, err)
	}
	client := &apt.Client{Runner: o.Runner, Dir: o.WorkDir, Progress: o.Progress}
	name, err := o.packageName(ctx, client)
	if err != nil {
		return source{}, err
	}
	debs, err := client.Download(ctx, name)
	if err != nil {
		return source{}, err
	}
	deb := debs[0]
	upstream := packageRelease(deb.Version)
	if o.Version != "" && o.Version != upstream && !strings.HasPrefix(upstream, o.Version+".") {
		return source{}, mvm.Errorf(mvm.ErrNotFound, "the package %s has the kernel %s, not %s", name, upstream, o.Version).
			WithHint("ask for %s, or take %s from kernel.org", upstream, o.Version)
	}
	return source{
		archive: deb.Path, inDeb: "usr/src/" + name + ".tar.xz", version: upstream, key: name + "=" + deb.Version,
		Provenance: mvm.Provenance{Source: name + "=" + deb.Version, Verification: mvm.VerifiedPackage},
	}, nil
}

// packageName returns the package that has the source of the version asked for.
func (o *BuildOptions) packageName(ctx context.Context, client *apt.Client) (string, error) {
	if o.Version != "" {
		parts := strings.Split(o.Version, ".")
		return "linux-source-" + parts[0] + "." + parts[1], nil
	}
	deps, err := client.Depends(ctx, "linux-source")
	if err != nil {
		return "", err
	}
	for _, d := range deps {
		if sourceForm.MatchString(d) {
			return d, nil
		}
	}
	return "", mvm.Errorf(mvm.ErrNotFound, "the distribution's linux-source names no source").WithHint("ask for a version, such as 6.1")
}

// packageRelease is the kernel's version in that of its package: "6.1.192-2" is 6.1.192.
func packageRelease(version string) string {
	if _, rest, ok := strings.Cut(version, ":"); ok {
		version = rest
	}
	upstream, _, _ := strings.Cut(version, "-")
	upstream, _, _ = strings.Cut(upstream, "+")
	upstream, _, _ = strings.Cut(upstream, "~")
	return upstream
}

// unpack unpacks the source into tree, unless it is there already. tar is run for
// it: the decompressor in Go takes eight times as long for 1.4 GB.
func (o *BuildOptions) unpack(ctx context.Context, src source, tree string) error {
	stamp := filepath.Join(tree, ".mvm-source")
	if was, err := os.ReadFile(stamp); err == nil && string(was) == src.key {
		return nil
	}
	if err := os.RemoveAll(filepath.Dir(tree)); err != nil {
		return err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return unwritable(o.BuildDir, err)
	}
	o.Progress.Send("unpack", "unpacking the source of "+src.version)
	archive := src.archive
	if src.inDeb != "" {
		dir := filepath.Dir(tree)
		archive = filepath.Join(dir, "source.tar.xz")
		defer func() { _ = os.Remove(archive) }()
		err := apt.Unpack(ctx, o.Runner, src.archive, dir, apt.UnpackOptions{Filter: func(name string) string {
			if name == src.inDeb {
				return "source.tar.xz"
			}
			return ""
		}})
		if err != nil {
			return err
		}
	}
	_, err := o.Runner.Run(ctx, run.Cmd{Name: "tar", Args: []string{
		"--extract", "--xz", "--file", archive, "--directory", tree, "--strip-components=1", "--no-same-owner", "--delay-directory-restore",
	}})
	if err != nil {
		_ = os.RemoveAll(filepath.Dir(tree))
		if errors.As(err, new(*run.ExitError)) {
			return mvm.Errorf(mvm.ErrBroken, "the source cannot be unpacked: %w", err).WithHint("check the free space of %s; 'mvm cache prune' makes some", o.BuildDir)
		}
		return err
	}
	return os.WriteFile(stamp, []byte(src.key), 0o644)
}
