package binary

import (
	"context"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
)

// releasesAPI lists Firecracker's releases (docs.github.com/en/rest/releases).
const releasesAPI = "https://api.github.com/repos/firecracker-microvm/firecracker/releases?per_page=100"

// ListRemote lists the releases of Firecracker for this host's architecture, or arch,
// the newest first, kept for ttl.
func ListRemote(ctx context.Context, f *asset.Fetcher, arch string, ttl time.Duration) ([]mvm.VersionInfo, error) {
	all, err := f.GitHubReleases(ctx, releasesAPI, ttl)
	if err != nil {
		return nil, err
	}
	if arch == "" {
		arch = hostArch()
	}
	var list []mvm.VersionInfo
	for _, r := range all {
		m := versionForm.FindStringSubmatch(r.Tag)
		if m == nil {
			continue
		}
		for _, a := range r.Assets {
			if a.Name != archiveName(m[1], arch) {
				continue
			}
			v := mvm.VersionInfo{Type: "firecracker", Version: m[1], Arch: arch, Released: r.Published.Format(time.DateOnly), Source: a.URL, Bytes: a.Size}
			if r.Prerelease {
				v.Note = "prerelease"
			}
			list = append(list, v)
		}
	}
	return list, nil
}
