package api

import (
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/image"
	"github.com/mvmctl/mvm/internal/image/imagetest"
)

// upstream has a world's downloads come from a server in the test.
func upstream(t *testing.T, m *Client) *imagetest.Upstream {
	t.Helper()
	u := imagetest.NewUpstream()
	server := httptest.NewServer(u)
	t.Cleanup(server.Close)
	m.core.cfg.AssetMirror, m.core.backoff = server.URL, time.Millisecond
	return u
}

// publishedImages are the images that upstreams have, as theirs are made.
func publishedImages(t *testing.T) map[string][]byte {
	t.Helper()
	m := imagetest.New(t)
	tree := m.Tree("tree", 62)
	ext4, xfs, btrfs := m.FS("ext4", tree), m.FS("xfs", tree), m.FS("btrfs", tree)
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	gpt := read(m.Format("qcow2", m.Disk("gpt", ext4)))
	return map[string][]byte{
		"ubuntu": gpt, "ubuntu-minimal": gpt, "debian": gpt, "alpine": read(m.Format("qcow2", ext4)),
		"archlinux": read(m.Format("qcow2", m.Disk("gpt", btrfs))), "fedora": read(m.Format("qcow2", m.Disk("mbr", btrfs))),
		"rocky": read(m.Format("qcow2", m.Disk("logical", xfs))), "opensuse": read(m.Format("qcow2", m.Disk("gpt", xfs))),
		"amazonlinux": read(m.Format("qcow2", m.Disk("mbr", xfs))), "firecracker": read(m.FS("squashfs", tree)),
	}
}

// TestPullEveryType gets each type of the catalog from its upstream's layout.
func TestPullEveryType(t *testing.T) {
	imagetest.Require(t)
	w := newWorld(t)
	m := w.open()
	u := upstream(t, m)
	for typ, content := range publishedImages(t) {
		t.Run(typ, func(t *testing.T) {
			path := u.Publish(typ, content)
			unchecked := typ == "firecracker"
			if unchecked {
				if i, err := m.Image.Pull(t.Context(), ImagePullInput{Type: typ}); !errors.Is(err, mvm.ErrBroken) || !strings.Contains(mvm.HintOf(err), "--skip-checksum") {
					t.Errorf("taken without a checksum: %+v, %v", i, err)
				}
			}
			i, err := m.Image.Pull(t.Context(), ImagePullInput{Type: typ, SkipChecksum: unchecked})
			if err != nil {
				t.Fatalf("%v (hint: %s)", err, mvm.HintOf(err))
			}
			want := mvm.VerifiedChecksum
			if unchecked {
				want = mvm.VerifiedNot
			}
			if i.Version != imagetest.Newest[typ] || i.Verification != want || !strings.HasSuffix(i.Source, path) || i.Digest == "" || i.Distro == nil || *i.Distro != "debian 12" {
				t.Errorf("%+v", i)
			}
			if i.CompressedFormat == nil || *i.CompressedFormat != "zst" || i.CompressedSize == nil || *i.CompressionRatio <= 1 {
				t.Errorf("%+v", i)
			}
			before := u.Count(path)
			again, err := m.Image.Pull(t.Context(), ImagePullInput{Type: typ, Version: imagetest.Newest[typ]})
			if err != nil || again.ID != i.ID || u.Count(path) != before {
				t.Errorf("pulled again: %+v, %v, downloads %d", again, err, u.Count(path))
			}
		})
	}
	all, err := m.Image.ListAll(t.Context())
	if err != nil || len(all) != len(imagetest.Types()) {
		t.Errorf("%d images, %v", len(all), err)
	}
	remote, err := m.Image.ListRemote(t.Context(), ImageRemoteInput{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range remote {
		if v.IsPresent != (v.Version == imagetest.Newest[v.Type]) {
			t.Errorf("%+v", v)
		}
	}
	if i := slices.IndexFunc(remote, func(v *mvm.ImageVersion) bool { return v.Type == "archlinux" && v.Version == "20251215.1" }); i < 0 {
		t.Errorf("%d versions, none of them the older Arch", len(remote))
	}
}

// A wrong checksum leaves no image and no row.
func TestPullRefusesWhatWasChanged(t *testing.T) {
	imagetest.Require(t)
	w := newWorld(t)
	m := w.open()
	u := upstream(t, m)
	path := u.Publish("ubuntu", []byte("as it was published"))
	u.Put(path, []byte("as it came"))
	if i, err := m.Image.Pull(t.Context(), ImagePullInput{Type: "ubuntu"}); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err := m.Image.Pull(t.Context(), ImagePullInput{Type: "ubunt"}); !errors.Is(err, mvm.ErrNotFound) || !strings.Contains(mvm.HintOf(err), "ubuntu") {
		t.Errorf("%+v, %v", i, err)
	}
	wantNoImages(t, m)
}

func wantNoImages(t *testing.T, m *Client) {
	t.Helper()
	all, err := m.Image.ListAll(t.Context())
	if err != nil || len(all) != 0 {
		t.Errorf("%d images, %v", len(all), err)
	}
	entries, err := os.ReadDir(m.core.paths.images())
	for _, e := range entries {
		if e.IsDir() {
			t.Errorf("left is %s", e.Name())
		}
	}
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
}

// imported imports a small ext4 into a world.
func imported(t *testing.T, m *Client, in ImageImportInput) *mvm.ImageItem {
	t.Helper()
	if in.SourcePath == "" {
		mk := imagetest.New(t)
		in.SourcePath = mk.FS("ext4", mk.Tree("tree", 62))
	}
	i, err := m.Image.Import(t.Context(), in)
	if err != nil {
		t.Fatalf("%v (hint: %s)", err, mvm.HintOf(err))
	}
	return i
}

func TestImportIsReadyWhenNeeded(t *testing.T) {
	imagetest.Require(t)
	w := newWorld(t)
	m := w.open()
	_, kernel := w.stock(m)
	i := imported(t, m, ImageImportInput{Name: "mine"})
	if i.Type != "mine" || i.Version != "imported" || i.Verification != mvm.VerifiedLocal || !i.IsPresent {
		t.Errorf("%+v", i)
	}
	raw := m.core.paths.abs(i.Path)
	if _, err := os.Stat(raw); !os.IsNotExist(err) {
		t.Errorf("it is there unpacked: %v", err)
	}
	_, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Image: "mine", KernelID: kernel.ID})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := disk.Probe(raw); err != nil || info.FS != "ext4" || info.UUID != *i.FSUUID {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := m.Image.Remove(t.Context(), ImageInput{[]string{"mine"}}, false); !errors.Is(err, mvm.ErrConflict) {
		t.Errorf("removed under a VM: %v", err)
	}
	got, err := m.Image.Inspect(t.Context(), ImageInput{[]string{"mine"}})
	if err != nil || !got.Storage.Warm || got.Storage.CompressedBytes != *i.CompressedSize || len(got.VMs) != 1 || got.Storage.UnpackedBytes == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := m.Image.Import(t.Context(), ImageImportInput{Name: "mine", SourcePath: raw, Force: true}); !errors.Is(err, mvm.ErrConflict) {
		t.Errorf("replaced under a VM: %v", err)
	}
}

// A file that is not what the image was is made again, and never used.
func TestWarmDoesNotTrustWhatIsStale(t *testing.T) {
	imagetest.Require(t)
	w := newWorld(t)
	m := w.open()
	i := imported(t, m, ImageImportInput{Name: "mine", SetDefault: true})
	raw := m.core.paths.abs(i.Path)
	if err := os.WriteFile(raw, []byte("half of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, in := range []struct {
		sel []string
		all bool
	}{{nil, false}, {[]string{"mine"}, false}, {nil, true}} {
		paths, err := m.Image.Warm(t.Context(), ImageInput{in.sel}, in.all)
		if err != nil || len(paths) != 1 || paths[0] != raw {
			t.Errorf("%v: %q, %v", in, paths, err)
		}
	}
	if info, err := disk.Probe(raw); err != nil || info.UUID != *i.FSUUID {
		t.Errorf("%+v, %v", info, err)
	}
	if err := errors.Join(os.Remove(raw), os.Truncate(image.Packed(raw), 100)); err != nil {
		t.Fatal(err)
	}
	if all, err := m.Image.ListAll(t.Context()); err != nil || all[0].IsPresent {
		t.Errorf("%+v, %v", all[0], err)
	}
	if _, err := m.Image.Warm(t.Context(), ImageInput{}, true); err != nil {
		t.Errorf("all that are there: %v", err)
	}
	if _, err := m.Image.Warm(t.Context(), ImageInput{[]string{"mine"}}, false); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" {
		t.Errorf("a damaged one: %v", err)
	}
	if _, err := os.Stat(raw); !os.IsNotExist(err) {
		t.Errorf("half an image is left: %v", err)
	}
}

func TestImportNames(t *testing.T) {
	imagetest.Require(t)
	w := newWorld(t)
	m := w.open()
	one := imported(t, m, ImageImportInput{Name: "mine", Version: "2.1", SkipOptimization: true})
	if one.CompressedFormat != nil || !m.core.isUnpacked(one) {
		t.Errorf("%+v", one)
	}
	source := m.core.paths.abs(one.Path)
	if _, err := m.Image.Import(t.Context(), ImageImportInput{Name: "mine", Version: "2.1", SourcePath: source}); !errors.Is(err, mvm.ErrExists) || mvm.HintOf(err) == "" {
		t.Errorf("twice: %v", err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := disk.Clone(t.Context(), source, copied); err != nil {
		t.Fatal(err)
	}
	two := imported(t, m, ImageImportInput{Name: "mine", Version: "2.1", SourcePath: copied, Force: true})
	if all, err := m.Image.ListAll(t.Context()); err != nil || len(all) != 1 || all[0].ID != two.ID {
		t.Errorf("%d images, %v", len(all), err)
	}
	if _, err := os.Stat(source); !os.IsNotExist(err) {
		t.Errorf("the replaced one is there: %v", err)
	}
	for _, in := range []ImageImportInput{
		{Name: "Bad Name", SourcePath: copied}, {Name: "x", Version: "../up", SourcePath: copied}, {Name: "x", SourcePath: ""}, {Name: "x", SourcePath: "nobody"},
		{Name: "x", SourcePath: copied, Arch: "vax"}, {Name: "x", SourcePath: copied, DisabledDetectors: []string{"luck"}}, {Name: "x", SourcePath: copied, Format: "iso"},
	} {
		if i, err := m.Image.Import(t.Context(), in); err == nil || mvm.HintOf(err) == "" {
			t.Errorf("%+v: %+v, %v", in, i, err)
		}
	}
}

// An image of a VM's disk has what the guest wrote, and the VM is as before.
func TestImportOfAVM(t *testing.T) {
	imagetest.Require(t)
	w := newWorld(t)
	m := w.open()
	_, kernel := w.stock(m)
	imported(t, m, ImageImportInput{Name: "mine"})
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Image: "mine", KernelID: kernel.ID}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"of-running", "of-stopped"} {
		before, err := m.VM.Get(t.Context(), VMInput{Identifiers: []string{"web"}})
		if err != nil {
			t.Fatal(err)
		}
		i := imported(t, m, ImageImportInput{Name: name, SourcePath: "web"})
		after, err := m.VM.Get(t.Context(), VMInput{Identifiers: []string{"web"}})
		if err != nil || after.Status != before.Status || i.Source != "VM web" || i.FSType != "ext4" || *i.Distro != "debian 12" {
			t.Errorf("%+v, %s before and %s after, %v", i, before.Status, after.Status, err)
		}
		if name == "of-stopped" {
			break
		}
		if _, err := m.VM.Stop(t.Context(), VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(m.core.paths.images(), ".build-*")); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
