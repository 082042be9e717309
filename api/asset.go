package api

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/fsx"
)

// fetcher downloads into the cache, for all kinds of asset. noCache has listings
// asked for anew.
func (c *core) fetcher(progress mvm.ProgressFunc, noCache bool) *asset.Fetcher {
	return &asset.Fetcher{
		Dir: c.paths.downloads(), Keys: c.paths.trustedKeys(), Mirror: envOr(c.cfg.AssetMirror, "MVM_ASSET_MIRROR"),
		NoCache: noCache, Backoff: c.backoff, Progress: progress,
	}
}

// makeDir makes a directory in the cache.
func (c *core) makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot make a directory in the cache: %w", err).WithHint("check the rights and the free space of %s", c.paths.cache)
	}
	return nil
}

// lockAsset has commands that get the same thing at once do it one after the
// other; the later one then finds it.
func (c *core) lockAsset(ctx context.Context, name string) (func(), error) {
	if err := c.makeDir(c.paths.ops()); err != nil {
		return nil, err
	}
	l, err := fsx.LockWait(ctx, filepath.Join(c.paths.ops(), "asset-"+strings.ReplaceAll(name, "/", "_")))
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrBusy, "waiting for another command that gets %s: %w", name, err)
	}
	gate, err := fsx.LockWait(ctx, filepath.Join(c.paths.ops(), assetGate))
	if err != nil {
		l.Unlock()
		return nil, mvm.Errorf(mvm.ErrBusy, "waiting for another command that frees the cache: %w", err).WithHint("try again when it has ended")
	}
	gate.Unlock()
	return l.Unlock, nil
}

// inUse refuses to remove what VMs refer to.
func inUse(users []*mvm.VMInstanceItem, force bool) error {
	if len(users) == 0 || force {
		return nil
	}
	var names []string
	for _, v := range users {
		names = append(names, v.Name)
	}
	return mvm.Errorf(mvm.ErrConflict, "it is used by %s", strings.Join(names, ", ")).WithHint("remove these VMs first, or use --force: they will not start again")
}

// removeAsset removes a directory of ours directly below parent.
func (c *core) removeAsset(parent, dir string) error {
	if filepath.Dir(dir) != parent {
		return mvm.Errorf(mvm.ErrBroken, "%s is not in %s, so its files are left", mvm.Quote(dir), parent)
	}
	return os.RemoveAll(dir)
}

func compare(a, b string) int { return strings.Compare(a, b) }

// compareVersions orders versions by their numbers: 6.1.9 before 6.1.10.
func compareVersions(a, b string) int {
	as, bs := versionParts(a), versionParts(b)
	for i := 0; i < len(as) && i < len(bs); i++ {
		x, errX := strconv.Atoi(as[i])
		y, errY := strconv.Atoi(bs[i])
		c := strings.Compare(as[i], bs[i])
		if errX == nil && errY == nil {
			c = cmp.Compare(x, y)
		}
		if c != 0 {
			return c
		}
	}
	return len(as) - len(bs)
}

func versionParts(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == '.' || r == '-' || r == '+' || r == '~' })
}
