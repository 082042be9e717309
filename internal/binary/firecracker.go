// Package binary gets VMM binaries: Firecracker's releases with their jailer.
// It knows how a release is packed and asks a binary for its version before it
// hands it out; it knows neither the store nor what the binaries are run for.
package binary

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
)

// releases is where Firecracker's releases are.
const releases = "https://github.com/firecracker-microvm/firecracker/releases/download"

// Options say what to pull and where to.
type Options struct {
	Dir          string // where the binaries go; made if missing
	Arch         string // "x86_64" or "aarch64"; "" is this host's
	BaseURL      string // of the releases; "" is GitHub's
	SkipChecksum bool
	Again        bool // download it even if it is there
	Fetcher      *asset.Fetcher
	Runner       run.Runner
	Progress     mvm.ProgressFunc
}

// Release is a release that was pulled.
type Release struct {
	Version     string // "1.16.1"
	Firecracker string // absolute path
	Jailer      string

	// Provenance is of the archive; it is zero for a release that was there.
	mvm.Provenance
}

var versionForm = regexp.MustCompile(`^v?([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(-[0-9a-z.]{1,32})?)$`)

// PullFirecracker downloads a release ("1.16.1" or "v1.16.1"), checks it
// against its published SHA-256, and leaves firecracker-vVERSION and
// jailer-vVERSION in o.Dir after both have said that they are that version. A
// release that is there already is only asked for its version.
//
// Errors: mvm.ErrInvalid for what is no version, mvm.ErrNotFound when there is
// no such release, mvm.ErrUnavailable without network, mvm.ErrBroken when the
// archive is not what it should be.
func PullFirecracker(ctx context.Context, version string, o Options) (Release, error) {
	m := versionForm.FindStringSubmatch(version)
	if m == nil {
		return Release{}, mvm.Errorf(mvm.ErrInvalid, "%q is no version", version).
			WithHint("a version is like 1.16.1; 'mvm binary ls --remote' lists them").On("pull", "firecracker")
	}
	rel, err := o.pull(ctx, m[1])
	return rel, mvm.Wrap(err, "pull", "firecracker:"+m[1])
}

func (o Options) pull(ctx context.Context, version string) (Release, error) {
	if o.Arch == "" {
		o.Arch = hostArch()
	}
	if o.Arch != "x86_64" && o.Arch != "aarch64" {
		return Release{}, mvm.Errorf(mvm.ErrUnsupported, "Firecracker has no releases for %q", o.Arch).
			WithHint("use --hypervisor qemu")
	}
	if o.BaseURL == "" {
		o.BaseURL = releases
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return Release{}, err
	}
	rel := Release{
		Version:     version,
		Firecracker: filepath.Join(o.Dir, "firecracker-v"+version),
		Jailer:      filepath.Join(o.Dir, "jailer-v"+version),
	}
	if !o.Again && o.says(ctx, rel.Firecracker, "Firecracker", version) == nil && o.says(ctx, rel.Jailer, "Jailer", version) == nil {
		return rel, nil
	}
	url := fmt.Sprintf("%s/v%s/%s", o.BaseURL, version, archiveName(version, o.Arch))
	got, err := o.Fetcher.Fetch(ctx, asset.File{
		URL: url, MaxBytes: maxArchive, Sums: &asset.Sums{URL: url + ".sha256.txt"}, Unchecked: o.SkipChecksum,
	})
	if err != nil {
		return Release{}, err
	}
	if err := o.install(ctx, got.Path, rel); err != nil {
		return Release{}, err
	}
	o.Fetcher.Forget(got) // the programs are kept, so nobody asks for it again
	rel.Provenance = got.Provenance
	return rel, nil
}

func hostArch() string {
	return map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
}

func archiveName(version, arch string) string {
	return fmt.Sprintf("firecracker-v%s-%s.tgz", version, arch)
}

// install unpacks the two programs, asks each for its version and puts them in
// place, Firecracker last: it is the one that is looked for.
func (o Options) install(ctx context.Context, archive string, rel Release) error {
	tmp, err := os.MkdirTemp(o.Dir, ".firecracker-*.tmp")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	programs := []struct{ entry, name, dest string }{
		{"jailer", "Jailer", rel.Jailer},
		{"firecracker", "Firecracker", rel.Firecracker},
	}
	wanted := map[string]string{} // name in the archive: file
	for _, p := range programs {
		in := fmt.Sprintf("release-v%s-%s/%s-v%s-%s", rel.Version, o.Arch, p.entry, rel.Version, o.Arch)
		wanted[in] = filepath.Join(tmp, p.entry)
	}
	o.Progress.Send("unpack", "unpacking Firecracker "+rel.Version)
	if err := extract(ctx, archive, wanted); err != nil {
		return err
	}
	for _, p := range programs {
		if err := o.says(ctx, filepath.Join(tmp, p.entry), p.name, rel.Version); err != nil {
			return err
		}
	}
	for _, p := range programs {
		if err := os.Rename(filepath.Join(tmp, p.entry), p.dest); err != nil {
			return err
		}
	}
	return fsx.SyncDir(o.Dir)
}

// says checks that the program calls itself NAME vVERSION on its first line.
func (o Options) says(ctx context.Context, path, name, version string) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	res, err := o.Runner.Run(ctx, run.Cmd{Name: path, Args: []string{"--version"}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		return mvm.Errorf(mvm.ErrBroken, "%s does not run: %w", filepath.Base(path), err).
			WithHint("is it for this machine's architecture (%s)?", o.Arch)
	}
	first, _, _ := strings.Cut(string(res.Stdout), "\n")
	if want := name + " v" + version; strings.TrimSpace(first) != want {
		return mvm.Errorf(mvm.ErrBroken, "%s says it is %q, not %q", filepath.Base(path), first, want).
			WithHint("pull it again")
	}
	return nil
}
