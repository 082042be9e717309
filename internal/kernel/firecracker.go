package kernel

import (
	"cmp"
	"context"
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
)

// ciBucket holds what Firecracker's own tests run. By path, because a certificate for
// the bucket's name with its dots would not do.
const ciBucket = "https://s3.amazonaws.com/spec.ccfc.min"

// CIOptions say which of the kernels of Firecracker's tests to fetch.
type CIOptions struct {
	Series       string // of Firecracker: "1.16"
	Version      string // "6.1.102", "6.1" for its newest, "" for the newest of all; with "-no-acpi" that variant
	Arch         string // X86_64 or ARM64; "" is this host's
	Digest       asset.Digest
	SkipChecksum bool
	TTL          time.Duration // of the listing

	Fetcher  *asset.Fetcher
	DestDir  string // gets one directory per kernel; made if missing
	Progress mvm.ProgressFunc
}

// CIKernel is a kernel in the bucket.
type CIKernel struct {
	Version  string // "6.1.102"
	URL      string
	SumURL   string // of its checksum, "" where none is published
	Bytes    int64
	Modified time.Time
}

var (
	seriesForm = regexp.MustCompile(`^v?([0-9]{1,3}\.[0-9]{1,3})(\.[0-9]{1,3})?$`)
	ciKey      = regexp.MustCompile(`^vmlinux-([0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,4}(?:-no-acpi)?)$`)
	ciWanted   = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,4}){0,2}(-no-acpi)?$`)
)

func (o *CIOptions) check() error {
	if o.Arch == "" {
		o.Arch = hostArch()
	}
	m := seriesForm.FindStringSubmatch(o.Series)
	if m == nil {
		return mvm.Errorf(mvm.ErrInvalid, "%s is no version of Firecracker", mvm.Quote(o.Series)).WithHint("a version is like 1.16.1")
	}
	o.Series = m[1]
	if o.Version != "" && !ciWanted.MatchString(o.Version) {
		return mvm.Errorf(mvm.ErrInvalid, "%s is no version of a kernel", mvm.Quote(o.Version)).
			WithHint("a version is like 6.1.102 or 6.1; 'mvm kernel ls --remote' lists them")
	}
	if o.Arch != X86_64 && o.Arch != ARM64 {
		return mvm.Errorf(mvm.ErrUnsupported, "Firecracker has no kernels for %s", mvm.Quote(o.Arch)).WithHint("use %s or %s", X86_64, ARM64)
	}
	return nil
}

// ListCI lists the kernels that Firecracker's tests run with, the newest first.
func ListCI(ctx context.Context, o CIOptions) ([]CIKernel, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	arch := map[string]string{X86_64: "x86_64", ARM64: "aarch64"}[o.Arch]
	dir := "firecracker-ci/v" + o.Series + "/" + arch + "/"
	objects, err := o.Fetcher.S3(ctx, ciBucket, dir+"vmlinux-", o.TTL)
	if err != nil {
		return nil, err
	}
	keys := map[string]bool{}
	for _, ob := range objects {
		keys[ob.Key] = true
	}
	var all []CIKernel
	for _, ob := range objects {
		name, below := strings.CutPrefix(ob.Key, dir)
		m := ciKey.FindStringSubmatch(name)
		if !below || m == nil {
			continue
		}
		k := CIKernel{Version: m[1], URL: ciBucket + "/" + ob.Key, Bytes: ob.Size, Modified: ob.Modified}
		for _, ending := range []string{".sha256", ".sha256.txt"} {
			if keys[ob.Key+ending] {
				k.SumURL = k.URL + ending
			}
		}
		all = append(all, k)
	}
	slices.SortStableFunc(all, func(a, b CIKernel) int { return compareReleases(b.Version, a.Version) })
	return all, nil
}

// compareReleases orders versions by their numbers; of equal ones the plain one is newer.
func compareReleases(a, b string) int {
	a, varA, _ := strings.Cut(a, "-")
	b, varB, _ := strings.Cut(b, "-")
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		x, _ := strconv.Atoi(as[i]) // the form was checked
		y, _ := strconv.Atoi(bs[i])
		if c := cmp.Compare(x, y); c != 0 {
			return c
		}
	}
	if c := cmp.Compare(len(as), len(bs)); c != 0 {
		return c
	}
	return cmp.Compare(varB, varA)
}

// FetchCI fetches a kernel of Firecracker's tests. Upstream publishes no checksums
// for most of them: without SkipChecksum or a Digest those are refused. A kernel that
// is there already is returned as it is.
//
// Errors: those of asset.Fetcher; mvm.ErrNotFound where there is no such kernel,
// mvm.ErrBroken for what is no kernel, or another one.
func FetchCI(ctx context.Context, o CIOptions) (Built, error) {
	b, err := o.fetch(ctx)
	return b, mvm.Wrap(err, "pull kernel", strings.TrimSuffix("firecracker:"+o.Version, ":"))
}

func (o CIOptions) fetch(ctx context.Context) (Built, error) {
	all, err := ListCI(ctx, o)
	if err != nil {
		return Built{}, err
	}
	if err := o.check(); err != nil {
		return Built{}, err
	}
	k, err := o.choose(all)
	if err != nil {
		return Built{}, err
	}
	b := Built{Version: k.Version, Arch: o.Arch, Base: "v" + o.Series, Warnings: []string{}}
	b.at(filepath.Join(o.DestDir, "firecracker-v"+o.Series+"-"+k.Version+"-"+o.Arch), o.Arch)
	if data, err := os.ReadFile(filepath.Join(b.Dir, marker)); err == nil && json.Unmarshal(data, &b) == nil && (o.SkipChecksum || b.Verification != mvm.VerifiedNot) {
		b.Reused, b.Info = true, []string{"it was there already"}
		return b, nil
	}
	file := asset.File{URL: k.URL, MaxBytes: maxKernel, Digest: o.Digest, Unchecked: o.SkipChecksum}
	if k.SumURL != "" {
		file.Sums = &asset.Sums{URL: k.SumURL, Name: path.Base(k.URL)}
	}
	got, err := o.Fetcher.Fetch(ctx, file)
	if err != nil {
		return Built{}, err
	}
	b.Provenance = got.Provenance
	if err := o.install(ctx, got.Path, &b); err != nil {
		return Built{}, err
	}
	o.Fetcher.Forget(got)
	return b, nil
}

// choose finds the version asked for among all, the newest first.
func (o CIOptions) choose(all []CIKernel) (CIKernel, error) {
	var names []string
	want, variant, _ := strings.Cut(o.Version, "-")
	for _, k := range all {
		version, is, _ := strings.Cut(k.Version, "-")
		if is == variant && (want == "" || version == want || strings.HasPrefix(version, want+".")) {
			return k, nil
		}
		names = append(names, k.Version)
	}
	e := mvm.Errorf(mvm.ErrNotFound, "Firecracker %s has no kernel %s for %s", o.Series, firstOf(o.Version, "at all"), o.Arch)
	if len(names) == 0 {
		return CIKernel{}, e.WithHint("try another version of Firecracker: mvm config set defaults.firecracker version 1.13.1")
	}
	return CIKernel{}, e.WithHint("there are %s", strings.Join(names[:min(len(names), 8)], ", "))
}

// install checks a downloaded kernel and puts it in place.
func (o CIOptions) install(ctx context.Context, file string, b *Built) error {
	info, err := Inspect(file)
	if err != nil {
		return mvm.Errorf(mvm.ErrBroken, "what was downloaded %w", err).WithHint("pull it again with --no-cache")
	}
	plain, _, _ := strings.Cut(b.Version, "-")
	switch {
	case info.Arch != o.Arch:
		return mvm.Errorf(mvm.ErrBroken, "the kernel is for %s, not %s", info.Arch, o.Arch).WithHint("pull it again with --no-cache")
	case info.Version != "" && !strings.HasPrefix(info.Version, plain):
		return mvm.Errorf(mvm.ErrBroken, "the kernel says that it is %s, not %s", info.Version, plain).WithHint("pull it again with --no-cache")
	}
	return b.place(ctx, file, o.DestDir, nil)
}

// ListReleases lists the current releases on kernel.org that have a source archive,
// in its order.
func ListReleases(ctx context.Context, f *asset.Fetcher, ttl time.Duration) ([]mvm.VersionInfo, error) {
	all, err := f.KernelOrg(ctx, "https://www.kernel.org/releases.json", ttl)
	if err != nil {
		return nil, err
	}
	var list []mvm.VersionInfo
	for _, r := range all {
		if !releaseForm.MatchString(r.Version) {
			continue // a candidate: it has no archive on the download host
		}
		note := r.Moniker
		if r.EOL {
			note += ", end of life"
		}
		list = append(list, mvm.VersionInfo{Version: r.Version, Released: r.Date, Note: note, Source: r.Source})
	}
	return list, nil
}
