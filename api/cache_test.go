package api

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/store"
)

func TestCacheInitAll(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	res, err := m.Cache.InitAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Made) == 0 || len(res.Initramfs) != 1 || res.CacheDir != m.CacheDir() {
		t.Errorf("%+v", res)
	}
	for _, dir := range res.Made {
		if fi, err := os.Stat(filepath.Join(m.CacheDir(), dir)); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, fi, err)
		}
	}
	if again, err := m.Cache.InitAll(t.Context()); err != nil || len(again.Made) != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

func TestPruneMisc(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	if _, err := m.Cache.InitAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := m.core
	old := filepath.Join(c.paths.initramfs(), "base-old.cpio")
	for _, path := range []string{filepath.Join(c.paths.downloads(), "a.deb"), old} {
		if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * usedLately)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	want := []string{"downloads/a.deb", "initramfs/base-old.cpio"}

	// Nothing goes while something is being fetched.
	unlock, err := c.lockAsset(t.Context(), "debian")
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Cache.PruneMisc(t.Context(), PruneInput{})
	refused(t, err, mvm.ErrBusy, "fetching or building")
	unlock()

	dry, err := m.Cache.PruneMisc(t.Context(), PruneInput{DryRun: true})
	if diff := cmp.Diff(want, dry.Removed); err != nil || diff != "" || dry.Bytes < 16384 {
		t.Errorf("%v, %d bytes\n%s", err, dry.Bytes, diff)
	}
	res, err := m.Cache.PruneAll(t.Context(), PruneInput{}, "misc")
	if err != nil || res.VM != nil || res.Combined != dry.Bytes {
		t.Fatalf("%+v, %v", res, err)
	}
	if diff := cmp.Diff(want, res.Misc.Removed); diff != "" {
		t.Error(diff)
	}
	for _, path := range want {
		if _, err := os.Stat(filepath.Join(m.CacheDir(), path)); err == nil {
			t.Errorf("%s is there still", path)
		}
	}
	// The initramfs that a VM was just made with stays, and making one goes on.
	if left, err := filepath.Glob(filepath.Join(c.paths.initramfs(), "base-*.cpio")); err != nil || len(left) != 1 {
		t.Errorf("left are %v (%v)", left, err)
	}
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"}); err != nil {
		t.Error(err)
	}
}

func TestCacheClean(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Volume.Create(ctx, VolumeCreateInput{Name: "data", Size: "1M"}); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(m.CacheDir(), "theirs")
	if err := os.WriteFile(theirs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	dry, err := m.Cache.Clean(ctx, true)
	if err != nil || dry.Pruned.VM.Removed[0] != "web" || dry.Volumes[0] != "data" || dry.Bytes == 0 {
		t.Fatalf("%+v, %v", dry, err)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("a dry run changed something:\n%s", diff)
	}
	res, err := m.Cache.Clean(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"theirs"}, res.Left); diff != "" {
		t.Error(diff)
	}
	// Its network has turned forwarding on, which reset takes back.
	if diff := cmp.Diff([]string{databaseFile}, res.Kept); diff != "" {
		t.Error(diff)
	}
	if left, err := os.ReadDir(m.CacheDir()); err != nil || len(left) != 3 {
		t.Errorf("left are %v (%v)", left, err)
	}
	if links, err := w.net.Interfaces(ctx); err != nil || len(links) != 1 {
		t.Errorf("left are the interfaces %v (%v)", links, err)
	}
	// And all goes on from nothing.
	if vms, err := m.VM.ListAll(ctx); err != nil || len(vms) != 0 {
		t.Errorf("%v, %v", vms, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// Where the host is changed, what it was before outlives the cache: reset takes it back,
// and then nothing keeps the database.
func TestCacheCleanKeepsWhatTheHostWas(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	ctx := t.Context()
	setup := &hostSetup{Changes: []host.Change{{
		Setting: host.Setting{Kind: host.Sysctl, Name: "net.ipv4.conf.none.forwarding"},
		Old:     host.State{Exists: true, Data: "0"}, New: host.State{Exists: true, Data: "1"},
	}}}
	c := m.Host.core
	st, err := c.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.SetHostState(ctx, setupKey, setup); err != nil {
		t.Fatal(err)
	}
	res, err := m.Cache.Clean(ctx, false)
	if err != nil || !slices.Contains(res.Kept, databaseFile) || slices.Contains(res.Removed, databaseFile) {
		t.Fatalf("%+v, %v", res, err)
	}
	if st, err = c.open(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := readSetup(ctx, st.Queries); err != nil || len(got.Changes) != 1 || got.Changes[0] != setup.Changes[0] {
		t.Errorf("known is %+v, %v", got, err)
	}
	if err := st.Tx(ctx, func(tx *store.Tx) error { return tx.DeleteHostState(ctx, setupKey) }); err != nil {
		t.Fatal(err)
	}
	if res, err = m.Cache.Clean(ctx, false); err != nil || len(res.Kept) > 0 {
		t.Errorf("after a reset: %+v, %v", res, err)
	}
}
