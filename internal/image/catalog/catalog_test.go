package catalog

import (
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/image/imagetest"
)

func source(t *testing.T, u *imagetest.Upstream) Source {
	t.Helper()
	server := httptest.NewServer(u)
	t.Cleanup(server.Close)
	return Source{Fetcher: &asset.Fetcher{Dir: t.TempDir(), Keys: t.TempDir(), Mirror: server.URL, Backoff: time.Millisecond}, TTL: time.Hour, Arch: "x86_64"}
}

// TestShipped finds and checks the newest image of every upstream, in its layout.
func TestShipped(t *testing.T) {
	c, err := Load(filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	want := imagetest.Types()
	got := slices.Sorted(slices.Values(c.Types()))
	if d := cmp.Diff(want, got); d != "" {
		t.Error("types and published ones differ", d)
	}
	for _, e := range c {
		t.Run(e.Type, func(t *testing.T) {
			u := imagetest.NewUpstream()
			content := []byte("the image of " + e.Type)
			path := u.Publish(e.Type, content)
			s := source(t, u)
			versions, err := s.List(t.Context(), e)
			if err != nil || len(versions) == 0 || versions[0] != imagetest.Newest[e.Type] {
				t.Fatal(versions, err)
			}
			for _, want := range []string{"", versions[0]} {
				f, version, err := s.Find(t.Context(), e, want)
				if err != nil || !strings.HasSuffix(f.URL, path) || version != versions[0] {
					t.Fatalf("%q: %+v, %s, %v", want, f, version, err)
				}
				f.Unchecked = e.Type == "firecracker"
				got, err := s.Fetch(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(got.Path)
				if err != nil || string(b) != string(content) {
					t.Errorf("%q, %v", b, err)
				}
			}
			if e.Type == "firecracker" {
				f, _, _ := s.Find(t.Context(), e, "")
				if _, err := s.Fetch(t.Context(), f); !errors.Is(err, mvm.ErrBroken) || !strings.Contains(mvm.HintOf(err), "--skip-checksum") {
					t.Errorf("taken without a checksum: %v", err)
				}
			}
			if _, _, err := s.Find(t.Context(), e, "0.0"); !errors.Is(err, mvm.ErrNotFound) || mvm.HintOf(err) == "" {
				t.Errorf("a version that is not there: %v", err)
			}
		})
	}
}

// What was changed on its way is refused, and a key of the user's makes a
// signature necessary.
func TestFailsClosed(t *testing.T) {
	c, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	e, err := c.Entry("ubuntu")
	if err != nil {
		t.Fatal(err)
	}
	u := imagetest.NewUpstream()
	path := u.Publish("ubuntu", []byte("good"))
	s := source(t, u)
	told := ""
	s.Notice = func(text string) { told = text }
	f, _, err := s.Find(t.Context(), e, "")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(told, "the key ubuntu-cloudimage is not in") {
		t.Errorf("of the signature nobody checks it is told %q", told)
	}
	u.Put(path, []byte("evil"))
	if _, err := s.Fetch(t.Context(), f); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" {
		t.Errorf("changed: %v", err)
	}
	u.Put(path, []byte("good"))
	if _, err := s.Fetch(t.Context(), f); err != nil {
		t.Errorf("as published: %v", err)
	}
	e.MustBeSigned = true
	if f, _, err = s.Find(t.Context(), e, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), f); !errors.Is(err, mvm.ErrNotFound) || !strings.Contains(err.Error(), "key") {
		t.Errorf("without the key: %v", err)
	}
}

// A release that is announced and has no image yet is passed over.
func TestPassesOverWhatIsToCome(t *testing.T) {
	c, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	e, err := c.Entry("fedora")
	if err != nil {
		t.Fatal(err)
	}
	u := imagetest.NewUpstream()
	u.Publish("fedora", []byte("x"))
	u.Put("/pub/fedora/linux/releases/44/Cloud/x86_64/images/soon.txt", nil)
	f, version, err := source(t, u).Find(t.Context(), e, "")
	if err != nil || version != "43" {
		t.Error(f, version, err)
	}
}

func TestOwnCatalog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.yaml")
	own := `images:
  - type: debian
    name: Ours
    arch: {x86_64: x86}
    versions: {fixed: ["7"]}
    file: {url: "https://images.example.org/{version}/{arch}.tar"}
    checksums: https://images.example.org/{version}/SUMS
  - type: appliance
    name: Appliance
    arch: {x86_64: x86}
    versions: {bucket: "https://s3.example.org/b", prefix: a/, match: '^a/([0-9.]+)/'}
    file: {bucket: "https://s3.example.org/b", prefix: "a/{version}/", match: '\.qcow2$'}
`
	if err := os.WriteFile(path, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := Load("")
	if err != nil || len(c) != len(shipped)+1 {
		t.Errorf("%d types, %v", len(c), err)
	}
	e, err := c.Entry("debian")
	if err != nil || e.Name != "Ours" {
		t.Fatal(e, err)
	}
	u := imagetest.NewUpstream()
	u.Put("/b/a/2.10/x.qcow2", nil)
	u.Put("/b/a/2.9/x.qcow2", nil)
	s := source(t, u)
	f, version, err := s.Find(t.Context(), e, "")
	if err != nil || version != "7" || f.URL != "https://images.example.org/7/x86.tar" || f.Sums.URL != "https://images.example.org/7/SUMS" {
		t.Errorf("%+v %s %v", f, version, err)
	}
	if e, err = c.Entry("appliance"); err != nil {
		t.Fatal(err)
	}
	if f, version, err := s.Find(t.Context(), e, ""); err != nil || version != "2.10" || f.URL != "https://s3.example.org/b/a/2.10/x.qcow2" {
		t.Errorf("%+v %s %v", f, version, err)
	}
}

var badCatalogs = map[string]string{
	"no yaml":          "images: [",
	"unknown word":     "images: [{type: a, nam: b}]",
	"type":             "images: [{type: 'A B', arch: {x: y}, versions: {fixed: ['1']}, file: {url: 'https://a/b'}}]",
	"no arch":          "images: [{type: a, versions: {fixed: ['1']}, file: {url: 'https://a/b'}}]",
	"no file":          "images: [{type: a, arch: {x: y}, versions: {fixed: ['1']}}]",
	"no versions":      "images: [{type: a, arch: {x: y}, file: {url: 'https://a/b'}}]",
	"file scheme":      "images: [{type: a, arch: {x: y}, versions: {fixed: ['1']}, file: {url: 'file:///etc/passwd'}}]",
	"bad pattern":      "images: [{type: a, arch: {x: y}, versions: {directory: 'https://a/', match: '('}, file: {url: 'https://a/b'}}]",
	"no group":         "images: [{type: a, arch: {x: y}, versions: {directory: 'https://a/', match: 'x'}, file: {url: 'https://a/b'}}]",
	"twice":            "images: [{type: a, arch: {x: y}, versions: {fixed: ['1']}, file: {url: 'https://a/b'}}, {type: a, arch: {x: y}, versions: {fixed: ['1']}, file: {url: 'https://a/b'}}]",
	"signed by nobody": "images: [{type: a, arch: {x: y}, versions: {fixed: ['1']}, file: {url: 'https://a/b'}, must_be_signed: true}]",
}

func TestRefusesBadCatalogs(t *testing.T) {
	for name, text := range badCatalogs {
		if c, err := Parse([]byte(text)); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	if c, err := Parse(nil); err != nil || len(c) != 0 {
		t.Error(c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(shipped)
	for _, text := range badCatalogs {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		for _, e := range c {
			if e.check() != nil {
				t.Errorf("took %+v", e)
			}
		}
	})
}

func TestCompareVersions(t *testing.T) {
	in := []string{"3.9", "3.20", "v1.10", "v1.9", "20251215.1", "20260115.300001", "a-3.20.9-r0", "a-3.20.10-r0"}
	for i := 0; i < len(in); i += 2 {
		a, b := in[i], in[i+1]
		if strings.HasPrefix(a, "v") {
			a, b = b, a
		}
		if compareVersions(a, b) >= 0 {
			t.Errorf("%s is not before %s", a, b)
		}
	}
}
