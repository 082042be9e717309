package apt

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// repo is a package source on disk that the real client reads. It is a Runner
// that shows the client this source and none of the host's.
type repo struct {
	run.Host
	t      *testing.T
	dir    string
	source string
	calls  []string
}

func newRepo(t *testing.T) *repo {
	t.Helper()
	testenv.Require(t, "apt")
	r := &repo{t: t, dir: t.TempDir()}
	r.use("deb [trusted=yes] file:" + filepath.Join(r.dir, "repo") + " ./")
	if err := os.MkdirAll(filepath.Join(r.dir, "repo"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(r.dir, "hostlists"), 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *repo) use(line string) {
	r.source = filepath.Join(r.dir, "sources.list")
	if err := os.WriteFile(r.source, []byte(line+"\n"), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repo) Run(ctx context.Context, c run.Cmd) (run.Result, error) {
	if strings.HasPrefix(c.Name, "apt-") {
		r.calls = append(r.calls, strings.Join(c.Args, " "))
		c.Args = append([]string{"-o", "Dir::Etc::SourceList=" + r.source, "-o", "Dir::Etc::SourceParts=/dev/null",
			"-o", "Dir::State::Lists=" + filepath.Join(r.dir, "hostlists"), "-o", "Acquire::http::Proxy=DIRECT"}, c.Args...)
	}
	return r.Host.Run(ctx, c)
}

// add builds packages, "name version depends" each, and the source's index.
func (r *repo) add(packages ...string) {
	r.t.Helper()
	var index strings.Builder
	for _, p := range packages {
		name, rest, _ := strings.Cut(p, " ")
		version, depends, _ := strings.Cut(rest, " ")
		control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: test\n", name, version)
		if depends != "" {
			control += "Depends: " + depends + "\n"
		}
		tree := r.t.TempDir()
		for path, text := range map[string]string{"DEBIAN/control": control, "usr/share/" + name: version,
			"DEBIAN/preinst": "#!/bin/sh\ntouch " + r.dir + "/script-ran\n"} {
			path = filepath.Join(tree, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
				r.t.Fatal(err)
			}
		}
		deb := filepath.Join(r.dir, "repo", name+"_"+strings.ReplaceAll(version, ":", "")+"_all.deb")
		if _, err := r.Run(r.t.Context(), run.Cmd{Name: "dpkg-deb", Args: []string{"--build", "--root-owner-group", tree, deb}}); err != nil {
			r.t.Fatal(err)
		}
		data, err := os.ReadFile(deb)
		if err != nil {
			r.t.Fatal(err)
		}
		fmt.Fprintf(&index, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", control, filepath.Base(deb), len(data), sha256.Sum256(data))
	}
	if err := os.WriteFile(filepath.Join(r.dir, "repo", "Packages"), []byte(index.String()), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repo) count(word string) (n int) {
	for _, c := range r.calls {
		if slices.Contains(strings.Fields(c), word) {
			n++
		}
	}
	return n
}

func names(debs []Deb) (s []string) {
	for _, d := range debs {
		s = append(s, d.Name+" "+d.Version+" "+d.Arch)
	}
	slices.Sort(s)
	return s
}

func TestDownload(t *testing.T) {
	r := newRepo(t)
	r.add("top 1:1.0 middle | other, bottom (>= 2)", "middle 1.5 bottom", "bottom 2.0", "alone 1")
	c := &Client{Runner: r, Dir: filepath.Join(t.TempDir(), "cache")}

	// The host has no lists: ours are fetched, once.
	debs, err := c.DownloadClosure(t.Context(), "top")
	if err != nil {
		t.Fatal(err, mvm.HintOf(err))
	}
	if d := cmp.Diff([]string{"bottom 2.0 all", "middle 1.5 all", "top 1:1.0 all"}, names(debs)); d != "" {
		t.Error(d)
	}
	if entries, err := os.ReadDir(filepath.Join(r.dir, "hostlists")); err != nil || len(entries) > 1 {
		t.Errorf("the host's lists were changed: %v, %v", entries, err)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "script-ran")); err == nil {
		t.Error("a maintainer script ran")
	}

	// Again: nothing is fetched.
	before := r.count("download")
	if _, err := c.DownloadClosure(t.Context(), "top"); err != nil {
		t.Fatal(err)
	}
	if got := r.count("download") - before; got != 0 || r.count("update") != 1 {
		t.Errorf("%d more downloads and %d updates, want 0 and 1", got, r.count("update"))
	}

	// A damaged file in the cache is fetched anew, a good one is not.
	if err := os.WriteFile(debs[0].Path, []byte("cut"), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := c.DownloadClosure(t.Context(), "top")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(again[0].Path); err != nil || st.Size() < 100 {
		t.Errorf("the damaged file stayed: %v %v", st, err)
	}

	if v, err := c.Candidate(t.Context(), "top"); err != nil || v != "1:1.0" {
		t.Errorf("Candidate = %q, %v", v, err)
	}
	deps, err := c.Depends(t.Context(), "top")
	if d := cmp.Diff([]string{"middle", "bottom"}, deps); err != nil || d != "" {
		t.Error(err, d)
	}
	if _, err := c.Download(t.Context(), "nosuch"); !errors.Is(err, mvm.ErrNotFound) || mvm.HintOf(err) == "" {
		t.Errorf("unknown package: %v", err)
	}
	if _, err := c.Candidate(t.Context(), "nosuch"); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("unknown package: %v", err)
	}
}

func TestDownloadNewerVersion(t *testing.T) {
	r := newRepo(t)
	r.add("aa 1")
	c := &Client{Runner: r, Dir: t.TempDir()}
	if _, err := c.Download(t.Context(), "aa"); err != nil {
		t.Fatal(err)
	}
	// The mirror moves on, as mirrors do: the old file is gone and our lists are old.
	if err := os.Remove(filepath.Join(r.dir, "repo", "aa_1_all.deb")); err != nil {
		t.Fatal(err)
	}
	r.add("aa 2")
	if err := os.RemoveAll(filepath.Join(c.Dir, "aa_1_all.deb")); err != nil {
		t.Fatal(err)
	}
	debs, err := c.Download(t.Context(), "aa")
	if d := cmp.Diff([]string{"aa 2 all"}, names(debs)); err != nil || d != "" {
		t.Error(err, d)
	}
}

func TestDownloadRefusesUnsigned(t *testing.T) {
	r := newRepo(t)
	r.add("aa 1")
	r.use("deb file:" + filepath.Join(r.dir, "repo") + " ./")
	c := &Client{Runner: r, Dir: t.TempDir()}
	if debs, err := c.Download(t.Context(), "aa"); err == nil {
		t.Fatalf("an unsigned source was trusted: %v", debs)
	}
}

func TestDownloadTamperedPackage(t *testing.T) {
	r := newRepo(t)
	r.add("aa 1")
	if err := os.WriteFile(filepath.Join(r.dir, "repo", "aa_1_all.deb"), []byte("something else"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := &Client{Runner: r, Dir: t.TempDir()}
	if debs, err := c.Download(t.Context(), "aa"); err == nil {
		t.Fatalf("a package with another hash was taken: %v", debs)
	}
}

func TestNoMirror(t *testing.T) {
	r := newRepo(t)
	r.use("deb [trusted=yes] http://127.0.0.1:1/debian ./")
	c := &Client{Runner: r, Dir: t.TempDir()}
	_, err := c.Download(t.Context(), "aa")
	if !errors.Is(err, mvm.ErrUnavailable) || !strings.Contains(err.Error(), "mirror does not answer") || mvm.HintOf(err) == "" {
		t.Errorf("err = %v, hint %q", err, mvm.HintOf(err))
	}
}

func TestNoApt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	c := &Client{Runner: &run.Host{}, Dir: t.TempDir()}
	if _, err := c.Download(t.Context(), "aa"); !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" {
		t.Errorf("err = %v", err)
	}
}
