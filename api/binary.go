package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/binary"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/store"
)

// The names of binaries.
const (
	binaryFirecracker = "firecracker"
	binaryJailer      = "jailer"
	binaryQEMU        = "qemu"
)

// BinaryInput selects binaries: type:version, id prefix, or type, which means the newest.
type BinaryInput struct{ Identifiers []string }

// BinaryPullInput is a VMM release to download, or a state of its source to build.
type BinaryPullInput struct {
	Name         string // "firecracker"; its jailer comes along
	Version      string // "1.16.1"; "" takes defaults.firecracker version
	GitRef       string // tag, branch or commit: build it instead, from defaults.binary repository
	SetDefault   bool
	SkipChecksum bool
	Force        bool // download it even if it is there
}

// ListAll returns the VMM binaries in the cache, and the QEMU of the host where
// there is one, the newest first within a name.
func (o *BinaryOperation) ListAll(ctx context.Context) ([]*mvm.BinaryItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	all, err := o.core.binaryItems(ctx, st)
	if err != nil {
		return nil, err
	}
	if q := o.core.hostQEMU(ctx); q != nil {
		all = append(all, q)
	}
	return all, nil
}

func (c *core) binaryItems(ctx context.Context, st *store.Store) ([]*mvm.BinaryItem, error) {
	all, err := st.ListBinaries(ctx)
	slices.SortStableFunc(all, func(a, b *mvm.BinaryItem) int {
		if a.Name != b.Name {
			return compare(a.Name, b.Name)
		}
		return compareVersions(b.Version, a.Version)
	})
	for _, b := range all {
		_, statErr := os.Stat(c.paths.abs(b.Path))
		b.IsPresent = statErr == nil
	}
	return all, err
}

// hostQEMU is the QEMU that the distribution has installed, or nil. It is in no
// table: the package manager says what there is.
func (c *core) hostQEMU(ctx context.Context) *mvm.BinaryItem {
	p := c.qemu().Probe(ctx)
	if p.Path == "" || p.Version == "" {
		return nil
	}
	info, err := os.Stat(p.Path)
	if err != nil {
		return nil
	}
	id := sha256.Sum256([]byte(p.Path))
	at := info.ModTime().UTC().Format(time.RFC3339)
	return &mvm.BinaryItem{
		ID: hex.EncodeToString(id[:]), Name: binaryQEMU, Version: p.Version, FullVersion: p.Version, Path: p.Path, IsDefault: true, IsPresent: true,
		CreatedAt: at, UpdatedAt: at, Provenance: mvm.Provenance{Source: "the host", Verification: mvm.VerifiedPackage},
	}
}

// Get returns the binaries that the selectors mean, one for each.
func (o *BinaryOperation) Get(ctx context.Context, in BinaryInput) ([]*mvm.BinaryItem, error) {
	if len(in.Identifiers) == 0 {
		_, err := one("binary", nil)
		return nil, err
	}
	all, err := o.ListAll(ctx)
	if err != nil {
		return nil, err
	}
	var items []*mvm.BinaryItem
	for _, sel := range in.Identifiers {
		b, err := pickBinary(sel, all)
		if err != nil {
			return items, err
		}
		items = append(items, b)
	}
	return items, nil
}

func pickBinary(selector string, all []*mvm.BinaryItem) (*mvm.BinaryItem, error) {
	names := make([]string, len(all))
	for i, b := range all {
		names[i] = b.Name
	}
	newest := newestOf(names)
	cands := make([]candidate[*mvm.BinaryItem], 0, len(all))
	for i, b := range all {
		c := candidate[*mvm.BinaryItem]{b, b.Name + ":" + b.Version, [][]string{{b.Name + ":" + b.Version, b.Name + ":v" + b.Version}, nil}, b.ID}
		if newest[i] {
			c.exact[1] = []string{b.Name}
		}
		cands = append(cands, c)
	}
	return pick("binary", selector, "see 'mvm binary ls', or get one with 'mvm binary pull firecracker'", cands)
}

// SetDefault makes a binary the one of its name that new VMs get; with a Firecracker
// its jailer.
func (o *BinaryOperation) SetDefault(ctx context.Context, in BinaryInput) (*mvm.BinaryItem, error) {
	if _, err := one("binary", in.Identifiers); err != nil {
		return nil, err
	}
	items, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	b := items[0]
	if b.Name == binaryQEMU {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "QEMU is the host's, and the only one").On("make default", b.Name).
			WithHint("to have VMs run on it: mvm config set settings.vm hypervisor qemu")
	}
	if !b.IsPresent {
		return nil, mvm.Errorf(mvm.ErrBroken, "its file is gone").On("make default", b.Name+":"+b.Version).WithHint("mvm binary pull %s:%s", b.Name, b.Version)
	}
	all, err := o.core.st.ListBinaries(ctx)
	if err != nil {
		return nil, err
	}
	err = o.core.st.Tx(ctx, func(tx *store.Tx) error {
		for _, other := range all {
			if other.ID == b.ID || b.Name == binaryFirecracker && other.Name == binaryJailer && other.Version == b.Version {
				if err := tx.SetDefaultBinary(ctx, other.ID); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return o.core.st.GetBinary(ctx, b.ID)
}

// EnsureDefault returns the default Firecracker, pulling the release that the
// settings name where there is none.
func (o *BinaryOperation) EnsureDefault(ctx context.Context, opts ...Option) (*mvm.BinaryItem, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	b, err := c.findBinary(ctx, st, "")
	if err != nil {
		return nil, err
	}
	if b != nil {
		if _, err := os.Stat(c.paths.abs(b.Path)); err == nil {
			b.IsPresent = true
			return b, nil
		}
	}
	in := BinaryPullInput{SetDefault: true}
	if b != nil { // its file is gone
		in.Version = b.Version
	}
	items, err := o.Pull(ctx, in, opts...)
	if err != nil {
		return nil, err
	}
	return items[0], nil
}

// Remove removes binaries. One that VMs use is kept unless force is set; what runs
// goes on running.
func (o *BinaryOperation) Remove(ctx context.Context, in BinaryInput, force bool) (mvm.Batch[*mvm.BinaryItem], error) {
	var batch mvm.Batch[*mvm.BinaryItem]
	for _, sel := range in.Identifiers {
		var b *mvm.BinaryItem
		items, err := o.Get(ctx, BinaryInput{[]string{sel}})
		if err == nil {
			b = items[0]
			err = mvm.Wrap(o.core.removeBinary(ctx, b, force), "remove binary", b.Name+":"+b.Version)
		}
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.BinaryItem]{Identifier: sel, Item: b, Err: err})
	}
	return batch, batch.Err()
}

// RemoveByVersion removes Firecracker and jailer of a version.
func (o *BinaryOperation) RemoveByVersion(ctx context.Context, version string, force bool) (mvm.Batch[*mvm.BinaryItem], error) {
	var batch mvm.Batch[*mvm.BinaryItem]
	st, err := o.core.open(ctx)
	if err != nil {
		return batch, err
	}
	all, err := o.core.binaryItems(ctx, st)
	if err != nil {
		return batch, err
	}
	for _, b := range all {
		if b.Version != version && "v"+b.Version != version {
			continue
		}
		err := mvm.Wrap(o.core.removeBinary(ctx, b, force), "remove binary", b.Name+":"+b.Version)
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.BinaryItem]{Identifier: b.Name + ":" + b.Version, Item: b, Err: err})
	}
	if len(batch.Entries) == 0 {
		return batch, mvm.Errorf(mvm.ErrNotFound, "there is no binary of version %s", mvm.Quote(version)).WithHint("see 'mvm binary ls'")
	}
	return batch, batch.Err()
}

func (c *core) removeBinary(ctx context.Context, b *mvm.BinaryItem, force bool) error {
	if b.Name == binaryQEMU {
		return mvm.Errorf(mvm.ErrUnsupported, "QEMU is the host's").WithHint("remove it with the package manager that installed it")
	}
	users, err := c.st.ListVMsUsing(ctx, store.UseBinary, b.ID)
	if err != nil {
		return err
	}
	if err := inUse(users, force); err != nil {
		return err
	}
	// As with kernels: the row goes first.
	if err := c.st.DeleteBinary(ctx, b.ID); err != nil {
		return err
	}
	path := c.paths.abs(b.Path)
	if filepath.Dir(path) != c.paths.binaries() {
		return mvm.Errorf(mvm.ErrBroken, "%s is not in %s, so its file is left", mvm.Quote(path), c.paths.binaries())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Pull downloads a release of Firecracker with its jailer, checked against its
// published checksum and asked for its version, and registers both; with a GitRef it
// builds them. The first release becomes the default.
func (o *BinaryOperation) Pull(ctx context.Context, in BinaryPullInput, opts ...Option) ([]*mvm.BinaryItem, error) {
	name := firstOf(in.Name, binaryFirecracker)
	switch {
	case name != binaryFirecracker:
		return nil, mvm.Errorf(mvm.ErrUnsupported, "%s cannot be pulled", mvm.Quote(name)).WithHint("only firecracker is downloaded, its jailer with it; QEMU comes with the distribution")
	case in.GitRef != "" && in.Version != "":
		return nil, mvm.Errorf(mvm.ErrInvalid, "a git reference and a version exclude each other").WithHint("what is built says its version itself")
	case in.GitRef != "" && in.SkipChecksum:
		return nil, mvm.Errorf(mvm.ErrInvalid, "what is built from source has no checksum to skip").WithHint("leave --skip-checksum out")
	case in.GitRef != "":
		if err := binary.CheckRef(in.GitRef); err != nil {
			return nil, err
		}
	}
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.core.pullFirecracker(ctx, st, in, options(opts).progress)
}

func (c *core) pullFirecracker(ctx context.Context, st *store.Store, in BinaryPullInput, progress mvm.ProgressFunc) ([]*mvm.BinaryItem, error) {
	set, err := loadSettings(ctx, st)
	if err != nil {
		return nil, err
	}
	version := firstOf(in.Version, set.str("defaults.firecracker", "version"))
	unlock, err := c.lockAsset(ctx, "firecracker-"+firstOf(in.GitRef, version))
	if err != nil {
		return nil, err
	}
	defer unlock()
	var rel binary.Release
	if in.GitRef != "" {
		var warning string
		rel, warning, err = binary.BuildFirecracker(ctx, in.GitRef, binary.BuildOptions{
			Dir: c.paths.binaries(), Repository: set.str("defaults.binary", "repository"), BuildDir: filepath.Join(c.paths.temp, "build", "firecracker"),
			LogDir: filepath.Join(c.paths.cache, "logs"), Runner: c.runner, Progress: progress,
		})
		if warning != "" {
			c.notice(warning)
		}
	} else {
		rel, err = binary.PullFirecracker(ctx, version, binary.Options{
			Dir: c.paths.binaries(), Fetcher: c.fetcher(progress, false), SkipChecksum: in.SkipChecksum, Again: in.Force, Runner: c.runner, Progress: progress,
		})
	}
	if err != nil {
		return nil, err
	}
	return c.registerRelease(ctx, st, rel, in.SetDefault)
}

// registerRelease puts both programs of a release into the store.
func (c *core) registerRelease(ctx context.Context, st *store.Store, rel binary.Release, asDefault bool) ([]*mvm.BinaryItem, error) {
	all, err := st.ListBinaries(ctx)
	if err != nil {
		return nil, err
	}
	items := []*mvm.BinaryItem{}
	for _, f := range []struct{ name, path string }{{binaryFirecracker, rel.Firecracker}, {binaryJailer, rel.Jailer}} {
		item := &mvm.BinaryItem{
			ID: newID(), Name: f.name, Version: rel.Version, FullVersion: "v" + rel.Version, Path: c.paths.rel(f.path), IsPresent: true,
			CreatedAt: now(), UpdatedAt: now(), Provenance: rel.Provenance,
		}
		first := true
		for _, b := range all {
			first = first && b.Name != f.name
			if b.Name == f.name && b.Version == rel.Version {
				item.ID, item.CreatedAt, item.IsDefault = b.ID, b.CreatedAt, b.IsDefault
				if item.Provenance == (mvm.Provenance{}) { // it was there already
					item.Provenance = b.Provenance
				}
			}
		}
		item.IsDefault = item.IsDefault || asDefault || first
		if err := st.UpsertBinary(ctx, item); err != nil {
			return nil, mvm.Wrap(err, "register", filepath.Base(f.path))
		}
		if item.IsDefault {
			if err := st.SetDefaultBinary(ctx, item.ID); err != nil {
				return nil, err
			}
		}
		items = append(items, item)
	}
	return items, nil
}

// BinaryRemoteInput says which releases to list that can be pulled.
type BinaryRemoteInput struct {
	Limit   int // 0 takes defaults.binary remote_version_limit
	NoCache bool
}

// ListRemote lists the releases of Firecracker that can be pulled, the newest first.
func (o *BinaryOperation) ListRemote(ctx context.Context, in BinaryRemoteInput, opts ...Option) ([]mvm.VersionInfo, error) {
	c := o.core
	if in.Limit < 0 {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%d versions cannot be listed", in.Limit).WithHint("set the limit to 1 or more")
	}
	st, set, err := c.openSet(ctx)
	if err != nil {
		return nil, err
	}
	have, err := c.binaryItems(ctx, st)
	if err != nil {
		return nil, err
	}
	ttl := time.Duration(set.num("defaults.binary", "remote_list_cache_ttl")) * time.Second
	all, err := binary.ListRemote(ctx, c.fetcher(options(opts).progress, in.NoCache), "", ttl)
	if err != nil {
		return nil, err
	}
	limit := in.Limit
	if limit == 0 {
		limit = set.num("defaults.binary", "remote_version_limit")
	}
	all = append([]mvm.VersionInfo{}, all[:min(len(all), limit)]...)
	for i := range all {
		for _, b := range have {
			all[i].IsPresent = all[i].IsPresent || b.Name == all[i].Type && b.Version == all[i].Version && b.IsPresent
		}
	}
	return all, nil
}

// wantFirecracker gets Firecracker where KVM works and none is there yet. Without
// a network the machine goes on with QEMU, and is told how to change that.
func (c *core) wantFirecracker(ctx context.Context, st *store.Store, progress mvm.ProgressFunc) (string, bool, error) {
	if kvm := host.CheckKVM(); !kvm.Usable {
		return "not needed: " + kvm.Problem.What, false, nil
	}
	if p := c.firecracker("").Probe(ctx); p.Usable {
		return "firecracker " + p.Version + " at " + p.Path, false, nil
	}
	if b, err := c.findBinary(ctx, st, ""); err != nil || b != nil {
		if err != nil {
			return "", false, err
		}
		return "firecracker " + b.Version, false, nil
	}
	progress.Send("firecracker", "downloading Firecracker")
	items, err := c.pullFirecracker(ctx, st, BinaryPullInput{SetDefault: true}, progress)
	switch {
	case errors.Is(err, mvm.ErrUnavailable) && ctx.Err() == nil:
		return "could not be downloaded (" + err.Error() + "); QEMU is used; get it later with 'mvm binary pull firecracker'", false, nil
	case err != nil:
		return "", false, err
	}
	return "firecracker " + items[0].Version, true, nil
}
