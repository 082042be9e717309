package api

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/asset/listing"
	"github.com/mvmctl/mvm/internal/update"
)

// UpdateOperation replaces the program by another release of itself.
type UpdateOperation struct{ core *core }

// UpdateInput says which release to take.
type UpdateInput struct {
	Feed    string // URL of the list of releases, as GitHub's API has it; "" takes settings.update feed_url
	Version string // "" takes the newest that is no prerelease
	Force   bool   // also the version that is there already, and older ones
}

// UpdateResult is what there is, or what was done.
type UpdateResult struct {
	Current   string `json:"current"` // the version that runs
	Version   string `json:"version"` // the one that was chosen
	Available bool   `json:"available"`
	Updated   bool   `json:"updated"`
	SignedBy  string `json:"signed_by,omitempty"` // fingerprint of the key
	Path      string `json:"path"`                // the program
}

// signer is whose key has to have signed a release; users put it into their
// trusted keys, or it is shipped.
const signer = "mvm"

// maxRelease bounds the archive of a release, in bytes.
const maxRelease = 1 << 30

// Check looks which release there is, and changes nothing.
func (o *UpdateOperation) Check(ctx context.Context, in UpdateInput) (*UpdateResult, error) {
	res, _, err := o.find(ctx, in)
	return res, err
}

// Apply replaces the program by a release: the archive for this machine, named in
// a list of checksums (SHA256SUMS) that is signed (SHA256SUMS.asc) by the makers'
// key. The version before is kept for Rollback. VMs go on running.
//
// Errors: mvm.ErrNotFound where there is no such release, or no key to trust;
// mvm.ErrBroken for a checksum or a signature that does not fit; mvm.ErrConflict
// for a program that a package manager looks after; mvm.ErrPrivilege.
func (o *UpdateOperation) Apply(ctx context.Context, in UpdateInput, opts ...Option) (*UpdateResult, error) {
	c, progress := o.core, options(opts).progress
	res, rel, err := o.find(ctx, in)
	if err != nil || !res.Available && !in.Force {
		return res, err
	}
	if err := c.packaged(res.Path); err != nil {
		return res, err
	}
	name := "mvm_" + res.Version + "_" + runtime.GOOS + "_" + runtime.GOARCH + ".tar.gz"
	archive, sums, sig := assetNamed(rel, name), assetNamed(rel, "SHA256SUMS"), assetNamed(rel, "SHA256SUMS.asc")
	for file, there := range map[string]*listing.ReleaseAsset{name: archive, "SHA256SUMS": sums, "SHA256SUMS.asc": sig} {
		if there == nil {
			return res, mvm.Errorf(mvm.ErrNotFound, "release %s has no %s", res.Version, file).WithHint("take another one: 'mvm self-update --version VERSION'")
		}
	}
	got, err := c.fetcher(progress, true).Fetch(ctx, asset.File{
		URL: archive.URL, MaxBytes: maxRelease,
		Sums: &asset.Sums{URL: sums.URL, Name: name, Signature: &asset.Signature{Upstream: signer, URL: sig.URL}},
	})
	if err != nil {
		return res, err
	}
	defer c.fetcher(nil, true).Forget(got)
	res.SignedBy = got.SignedBy
	progress.Send("install", "replacing "+res.Path)
	p := update.Program{Path: res.Path, Runner: c.runner}
	if err := p.Stage(ctx, got.Path, res.Version); err != nil {
		return res, mvm.Wrap(err, "update", res.Path)
	}
	if err := p.Swap(context.WithoutCancel(ctx), res.Version); err != nil {
		return res, mvm.Wrap(err, "update", res.Path)
	}
	res.Updated = true
	return res, nil
}

// Rollback puts the version before the last update in place again.
func (o *UpdateOperation) Rollback(ctx context.Context) (*UpdateResult, error) {
	path, err := o.program()
	if err != nil {
		return nil, err
	}
	res := &UpdateResult{Current: Version, Path: path}
	if err := o.core.packaged(path); err != nil {
		return res, err
	}
	res.Version, err = update.Program{Path: path, Runner: o.core.runner}.Rollback(ctx)
	res.Updated = err == nil
	return res, mvm.Wrap(err, "roll back", path)
}

// program is the file that is replaced, not a link to it.
func (o *UpdateOperation) program() (string, error) {
	path, err := filepath.EvalSymlinks(o.core.cfg.Executable)
	if err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "cannot tell which file this program is: %w", err).WithHint("run it from a file that is there, not one that was replaced or removed")
	}
	return path, nil
}

// find asks the feed and chooses a release.
func (o *UpdateOperation) find(ctx context.Context, in UpdateInput) (*UpdateResult, *listing.Release, error) {
	c := o.core
	path, err := o.program()
	if err != nil {
		return nil, nil, err
	}
	_, set, err := c.openSet(ctx)
	if err != nil {
		return nil, nil, err
	}
	feed := firstOf(in.Feed, set.str("settings.update", "feed_url"))
	releases, err := c.fetcher(nil, true).GitHubReleases(ctx, feed, 0)
	if err != nil {
		return nil, nil, mvm.Wrap(err, "look for releases at", asset.Shown(feed))
	}
	rel, err := choose(releases, strings.TrimPrefix(in.Version, "v"))
	if err != nil {
		return nil, nil, err
	}
	version := strings.TrimPrefix(rel.Tag, "v")
	newer := compareVersions(version, Version) > 0
	return &UpdateResult{Current: Version, Version: version, Path: path, Available: newer || in.Version != "" && version != Version}, rel, nil
}

// choose takes the release of a version, or the newest finished one.
func choose(releases []listing.Release, version string) (*listing.Release, error) {
	var best *listing.Release
	var names []string
	for i := range releases {
		r := &releases[i]
		v := strings.TrimPrefix(r.Tag, "v")
		names = append(names, v)
		switch {
		case version != "" && v == version:
			return r, nil
		case version == "" && !r.Prerelease && (best == nil || compareVersions(v, strings.TrimPrefix(best.Tag, "v")) > 0):
			best = r
		}
	}
	if best != nil {
		return best, nil
	}
	e := mvm.Errorf(mvm.ErrNotFound, "there is no release")
	if version != "" {
		e = mvm.Errorf(mvm.ErrNotFound, "there is no release %s", mvm.Quote(version))
	}
	if near := mvm.Nearest(version, names); len(near) > 0 {
		return nil, e.WithHint("did you mean %s?", near[0])
	}
	return nil, e.WithHint("'mvm self-update --check' shows the newest one; the feed is 'mvm config get settings.update feed_url'")
}

func assetNamed(rel *listing.Release, name string) *listing.ReleaseAsset {
	for i := range rel.Assets {
		if rel.Assets[i].Name == name {
			return &rel.Assets[i]
		}
	}
	return nil
}

// dpkgFiles lists what the distribution's package of mvm has installed (dpkg(1)).
const dpkgFiles = "/var/lib/dpkg/info/mvm.list"

// packaged refuses to replace what a package manager would put back or miss.
func (c *core) packaged(path string) error {
	data, err := os.ReadFile(c.packageFiles)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if strings.TrimSpace(line) == path {
			return mvm.Errorf(mvm.ErrConflict, "%s belongs to the package mvm", path).WithHint("update it with the package manager: apt-get install --only-upgrade mvm")
		}
	}
	return nil
}
