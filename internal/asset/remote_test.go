package asset

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
)

const (
	onePage = `<html><body><pre><a href="../">../</a><a href="a.img">a.img</a></pre></body></html>`
	page1   = `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t/1</NextContinuationToken><Contents><Key>p/a</Key></Contents></ListBucketResult>`
	page2   = `<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>p/b</Key></Contents></ListBucketResult>`
)

func TestListingsAreKept(t *testing.T) {
	s := newSite(t, map[string][]byte{"/dir/": []byte(onePage)})
	f := fetcher(t, nil)
	var said []string
	f.Progress = func(e mvm.ProgressEvent) { said = append(said, e.Message) }
	list := func(ttl time.Duration) string {
		t.Helper()
		entries, err := f.Directory(t.Context(), s.url+"/dir", ttl)
		if err != nil {
			return err.Error()
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name)
		}
		return strings.Join(names, " ")
	}
	for range 3 {
		if got := list(time.Hour); got != "a.img" {
			t.Errorf("got %q", got)
		}
	}
	if n := s.requests("/dir/"); n != 1 {
		t.Errorf("%d requests within the time to live", n)
	}
	s.files["/dir/"] = []byte(strings.ReplaceAll(onePage, "a.img", "b.img"))
	if got := list(0); got != "b.img" {
		t.Errorf("after the time to live: %q", got)
	}
	f.NoCache = true
	s.files["/dir/"] = []byte(onePage)
	if got := list(time.Hour); got != "a.img" {
		t.Errorf("without the cache: %q", got)
	}
	f.NoCache = false

	// What is no listing is not kept, and what was is.
	s.files["/dir/"] = []byte("please log in")
	if got := list(0); !strings.Contains(got, "no HTML") {
		t.Errorf("no listing: %q", got)
	}
	if got := list(time.Hour); got != "a.img" {
		t.Errorf("then: %q", got)
	}
	// A source that does not answer leaves us with what we have, and is told of.
	f.Dir, f.Mirror = t.TempDir(), ""
	s.files["/dir/"] = []byte(onePage)
	if got := list(time.Hour); got != "a.img" {
		t.Errorf("got %q", got)
	}
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	was := s.url
	s.url = down.URL
	if got := list(0); !strings.Contains(got, "cannot") {
		t.Errorf("a source that never answered: %q", got)
	}
	s.url = was
}

func TestListingOfASourceThatIsDown(t *testing.T) {
	up := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !up {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte(onePage))
	}))
	defer srv.Close()
	f := fetcher(t, nil)
	var said []string
	f.Progress = func(e mvm.ProgressEvent) { said = append(said, e.Message) }
	if _, err := f.Directory(t.Context(), srv.URL, time.Hour); err != nil {
		t.Fatal(err)
	}
	up = false
	entries, err := f.Directory(t.Context(), srv.URL, 0)
	if err != nil || len(entries) != 1 || !strings.Contains(strings.Join(said, "\n"), "going by what was there") {
		t.Errorf("got %v, %v; said %q", entries, err, said)
	}
	f.NoCache = true
	if _, err := f.Directory(t.Context(), srv.URL, time.Hour); !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("without the cache: %v", err)
	}
}

func TestS3Pages(t *testing.T) {
	s := newSite(t, map[string][]byte{
		"/b/?list-type=2&prefix=p%2F":                            []byte(page1),
		"/b/?continuation-token=t%2F1&list-type=2&prefix=p%2F":   []byte(page2),
		"/end/?list-type=2&prefix=":                              []byte(page1),
		"/end/?continuation-token=t%2F1&list-type=2&prefix=":     []byte(page1),
		"/other/?list-type=2&prefix=firecracker-ci%2Fv1.16%2Fvm": []byte(page2),
	})
	f := fetcher(t, nil)
	for range 2 {
		objects, err := f.S3(t.Context(), s.url+"/b", "p/", time.Hour)
		if err != nil || len(objects) != 2 || objects[0].Key != "p/a" || objects[1].Key != "p/b" {
			t.Errorf("got %v, %v", objects, err)
		}
	}
	if n := s.requests("/b/?list-type=2&prefix=p%2F"); n != 1 {
		t.Errorf("%d requests for the first page", n)
	}
	if _, err := f.S3(t.Context(), s.url+"/end", "", time.Hour); !errors.Is(err, mvm.ErrBroken) {
		t.Errorf("a listing without end: %v", err)
	}
	// Through a mirror that is a URL, with the query.
	f.Mirror = s.url
	if objects, err := f.S3(t.Context(), "https://bucket.invalid/other", "firecracker-ci/v1.16/vm", time.Hour); err != nil || len(objects) != 1 {
		t.Errorf("through a mirror: %v, %v", objects, err)
	}
}

func TestListingsOfADirectory(t *testing.T) {
	f := fetcher(t, nil)
	f.Mirror = t.TempDir()
	for _, name := range []string{"pub/v6.x/linux-6.1.tar.xz", "pub/v6.x/a b&c", "pub/v6.x/sub/x", "bucket/p/vmlinux-1", "bucket/q/vmlinux-2"} {
		path := filepath.Join(f.Mirror, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, []byte(name))
	}
	entries, err := f.Directory(t.Context(), "https://h.invalid/pub/v6.x", time.Hour)
	if err != nil || len(entries) != 3 || entries[0].Name != "a b&c" || entries[1].Name != "linux-6.1.tar.xz" || entries[2].Name != "sub" || !entries[2].Dir {
		t.Errorf("got %v, %v", entries, err)
	}
	objects, err := f.S3(t.Context(), "https://h.invalid/bucket", "p/vm", time.Hour)
	if err != nil || len(objects) != 1 || objects[0].Key != "p/vmlinux-1" {
		t.Errorf("got %v, %v", objects, err)
	}
	if _, err := f.S3(t.Context(), "https://h.invalid/bucket", "none", time.Hour); !errors.Is(err, mvm.ErrNotFound) || mvm.HintOf(err) == "" {
		t.Errorf("nothing there: %v", err)
	}
	if _, err := f.Directory(t.Context(), "https://h.invalid/none", time.Hour); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("no such directory: %v", err)
	}
	if all := left(t, f.Dir); len(all) != 0 {
		t.Errorf("listings of a local directory are kept: %v", all)
	}
}
