package binary

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/run"
)

// TestMain makes the test binary serve as the programs in the archives: their
// scripts start it again with what they are to say.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "say" {
		fmt.Print(os.Args[2])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// program is a stand-in for a binary that prints its version as the real ones
// do: the version, an empty line, a line of log.
func program(t *testing.T, name, version string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("#!/bin/sh\nexec '%s' say '%s v%s\n\n2026-01-01T00:00:00 [anonymous-instance:main] exit_code=0\n'\n", self, name, version)
}

type entry struct {
	name, body string
	kind       byte // 0 is a regular file
	link       string
}

func tgz(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o700, Size: int64(len(e.body))}
		if e.kind != 0 {
			h.Typeflag, h.Linkname = e.kind, e.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const inner = "release-v1.16.1-x86_64/"

func good(t *testing.T) []entry {
	return []entry{
		{name: inner, kind: tar.TypeDir},
		{name: inner + "SHA256SUMS", body: "sums"},
		{name: inner + "firecracker-v1.16.1-x86_64.debug", body: "debug"},
		{name: inner + "firecracker-v1.16.1-x86_64", body: program(t, "Firecracker", "1.16.1")},
		{name: inner + "jailer-v1.16.1-x86_64", body: program(t, "Jailer", "1.16.1")},
	}
}

// site serves a release; sum "" computes the right one.
func site(t *testing.T, archive []byte, sum string) (base string, requests *int) {
	t.Helper()
	if sum == "" {
		sum = fmt.Sprintf("%x  firecracker-v1.16.1-x86_64.tgz\n", sha256.Sum256(archive))
	}
	requests = new(int)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*requests++
		switch r.URL.Path {
		case "/v1.16.1/firecracker-v1.16.1-x86_64.tgz":
			_, _ = w.Write(archive)
		case "/v1.16.1/firecracker-v1.16.1-x86_64.tgz.sha256.txt":
			_, _ = w.Write([]byte(sum))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, requests
}

func options(t *testing.T, base string) Options {
	return Options{
		Dir: filepath.Join(t.TempDir(), "bin"), Arch: "x86_64", BaseURL: base, Runner: &run.Host{},
		Fetcher: &asset.Fetcher{Dir: t.TempDir(), Backoff: time.Microsecond},
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestPull(t *testing.T) {
	base, requests := site(t, tgz(t, good(t)...), "")
	o := options(t, base)
	rel, err := PullFirecracker(t.Context(), "v1.16.1", o)
	if err != nil {
		t.Fatal(err)
	}
	want := Release{Version: "1.16.1", Firecracker: filepath.Join(o.Dir, "firecracker-v1.16.1"), Jailer: filepath.Join(o.Dir, "jailer-v1.16.1")}
	if rel.Verification != mvm.VerifiedChecksum || !strings.HasSuffix(rel.Source, "-x86_64.tgz") || !strings.HasPrefix(rel.Digest, "sha256:") {
		t.Errorf("provenance %+v", rel.Provenance)
	}
	if rel.Provenance = (mvm.Provenance{}); rel != want {
		t.Errorf("got %+v", rel)
	}
	if got := names(t, o.Dir); got != "firecracker-v1.16.1 jailer-v1.16.1" {
		t.Errorf("the directory has %s", got)
	}
	if info, err := os.Stat(rel.Firecracker); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, error %v", info, err)
	}
	before := *requests
	if again, err := PullFirecracker(t.Context(), "1.16.1", o); err != nil || again != want || *requests != before {
		t.Errorf("again: %+v, error %v, %d requests", again, err, *requests-before)
	}
	// One that is damaged is replaced.
	if err := os.WriteFile(rel.Jailer, []byte("#!/bin/sh\necho other\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := PullFirecracker(t.Context(), "1.16.1", o); err != nil || *requests == before {
		t.Errorf("error %v, %d requests", err, *requests-before)
	}
}

func TestPullFails(t *testing.T) {
	swap := func(i int, e entry) func(*testing.T) []entry {
		return func(t *testing.T) []entry { all := good(t); all[i] = e; return all }
	}
	tests := []struct {
		name    string
		entries func(*testing.T) []entry
		sum     string
		version string
		arch    string
		kind    mvm.Kind
	}{
		{name: "no version", version: "latest/../..", kind: mvm.ErrInvalid},
		{name: "no such release", version: "9.9.9", kind: mvm.ErrNotFound},
		{name: "no such architecture", arch: "riscv64", kind: mvm.ErrUnsupported},
		{name: "other checksum", sum: strings.Repeat("0", 64) + "  firecracker-v1.16.1-x86_64.tgz", kind: mvm.ErrBroken},
		{name: "checksum of another file", sum: strings.Repeat("0", 64) + "  x.tgz", kind: mvm.ErrBroken},
		{name: "no checksum", sum: "<html>", kind: mvm.ErrBroken},
		{name: "no jailer", entries: func(t *testing.T) []entry { return good(t)[:4] }, kind: mvm.ErrBroken},
		{name: "a link for a program", entries: swap(3, entry{name: inner + "firecracker-v1.16.1-x86_64", kind: tar.TypeSymlink, link: "/bin/sh"}), kind: mvm.ErrBroken},
		{name: "outside", entries: swap(3, entry{name: "../../firecracker-v1.16.1-x86_64", body: "x"}), kind: mvm.ErrBroken},
		{name: "does not run", entries: swap(3, entry{name: inner + "firecracker-v1.16.1-x86_64", body: "\x7fELF"}), kind: mvm.ErrBroken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			entries := good
			if tt.entries != nil {
				entries = tt.entries
			}
			base, _ := site(t, tgz(t, entries(t)...), tt.sum)
			o := options(t, base)
			if tt.arch != "" {
				o.Arch = tt.arch
			}
			version := "1.16.1"
			if tt.version != "" {
				version = tt.version
			}
			rel, err := PullFirecracker(t.Context(), version, o)
			if rel != (Release{}) || !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %+v, %v (hint %q), want kind %q", rel, err, mvm.HintOf(err), tt.kind)
			}
			for _, name := range strings.Fields(names(t, o.Dir)) {
				if !strings.HasSuffix(name, ".tgz") {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
	t.Run("says another version", func(t *testing.T) {
		all := good(t)
		all[3].body = program(t, "Firecracker", "1.15.0")
		base, _ := site(t, tgz(t, all...), "")
		if _, err := PullFirecracker(t.Context(), "1.16.1", options(t, base)); !errors.Is(err, mvm.ErrBroken) || !strings.Contains(err.Error(), "1.15.0") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cut off", func(t *testing.T) {
		archive := tgz(t, good(t)...)
		base, _ := site(t, archive[:len(archive)/2], "")
		if _, err := PullFirecracker(t.Context(), "1.16.1", options(t, base)); !errors.Is(err, mvm.ErrBroken) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPullWithoutChecksum(t *testing.T) {
	base, _ := site(t, tgz(t, good(t)...), "none")
	o := options(t, base)
	o.SkipChecksum = true
	if _, err := PullFirecracker(t.Context(), "1.16.1", o); err != nil {
		t.Error(err)
	}
}
