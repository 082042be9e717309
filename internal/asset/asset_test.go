package asset

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
)

var content = bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // 256 KiB

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// server serves content at /dir/file. Each function of breaks handles one
// request, in order, before the server behaves.
func server(t *testing.T, breaks ...http.HandlerFunc) (url string, ranges func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n := len(seen)
		seen = append(seen, r.Header.Get("Range"))
		mu.Unlock()
		switch {
		case n < len(breaks):
			breaks[n](w, r)
		case r.URL.Path != "/dir/file":
			http.NotFound(w, r)
		default:
			http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(content))
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/dir/file", func() []string { mu.Lock(); defer mu.Unlock(); return seen }
}

// cut sends n bytes of the file, or of the part asked for, and breaks off.
func cut(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
			w.Header().Set("Content-Length", fmt.Sprint(len(content)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		}
		_, _ = w.Write(content[from : from+n])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
}

func opts(t *testing.T, url string) Options {
	return Options{URL: url, Dest: filepath.Join(t.TempDir(), "f"), Digest: Digest("sha256:" + sumOf(content)), Backoff: time.Microsecond}
}

// wantWhole checks that the file is there, and nothing beside it.
func wantWhole(t *testing.T, o Options) {
	t.Helper()
	got, err := os.ReadFile(o.Dest)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
	if _, err := os.Stat(o.Dest + ".part"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the partial file is left: %v", err)
	}
}

func TestFetch(t *testing.T) {
	tests := []struct {
		name   string
		breaks []http.HandlerFunc
		noSum  bool
		ranges int // how many requests ask for a part
	}{
		{name: "at once"},
		{name: "without sum", noSum: true},
		{name: "server errors pass", breaks: []http.HandlerFunc{status(503), status(500), status(429)}},
		{name: "broken off twice", breaks: []http.HandlerFunc{cut(1000), cut(2000)}, ranges: 2},
		{name: "broken off often, with progress", breaks: []http.HandlerFunc{cut(10), cut(10), cut(10), cut(10), cut(10), cut(10), cut(10)}, ranges: 7},
		{name: "broken off, no sum", breaks: []http.HandlerFunc{cut(1000)}, noSum: true, ranges: 1},
		{name: "server knows no ranges", breaks: []http.HandlerFunc{cut(1000), func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(content) }}, ranges: 1},
		{name: "range refused", breaks: []http.HandlerFunc{cut(1000), status(416)}, ranges: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			url, ranges := server(t, tt.breaks...)
			o := opts(t, url)
			if tt.noSum {
				o.Digest = ""
			}
			var last mvm.ProgressEvent
			o.Progress = func(e mvm.ProgressEvent) { last = e }
			if err := Fetch(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			wantWhole(t, o)
			if n := len(strings.Fields(strings.Join(ranges(), " "))); n != tt.ranges {
				t.Errorf("%d requests for a part, want %d: %q", n, tt.ranges, ranges())
			}
			if last.Current != int64(len(content)) {
				t.Errorf("last progress %+v", last)
			}
		})
	}
}

func TestFetchAcrossCalls(t *testing.T) {
	t.Run("goes on with a partial file", func(t *testing.T) {
		url, ranges := server(t)
		o := opts(t, url)
		write(t, o.Dest+".part", content[:5000])
		if err := Fetch(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		wantWhole(t, o)
		if got := ranges(); len(got) != 1 || got[0] != "bytes=5000-" {
			t.Errorf("requests %q", got)
		}
	})
	t.Run("a foreign partial file is given up", func(t *testing.T) {
		url, _ := server(t)
		o := opts(t, url)
		write(t, o.Dest+".part", bytes.Repeat([]byte("x"), 5000))
		if err := Fetch(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		wantWhole(t, o)
	})
	t.Run("a partial file longer than the file", func(t *testing.T) {
		url, _ := server(t)
		o := opts(t, url)
		write(t, o.Dest+".part", make([]byte, 2*len(content)))
		if err := Fetch(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		wantWhole(t, o)
	})
	t.Run("without sum a partial file is no help", func(t *testing.T) {
		url, ranges := server(t)
		o := opts(t, url)
		o.Digest = ""
		write(t, o.Dest+".part", []byte("x"))
		if err := Fetch(t.Context(), o); err != nil || ranges()[0] != "" {
			t.Errorf("error %v, requests %q", err, ranges())
		}
		wantWhole(t, o)
	})
	t.Run("the file is there", func(t *testing.T) {
		url, ranges := server(t)
		o := opts(t, url)
		write(t, o.Dest, content)
		if err := Fetch(t.Context(), o); err != nil || len(ranges()) != 0 {
			t.Errorf("error %v, requests %q", err, ranges())
		}
		wantWhole(t, o)
	})
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFetchFails(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	good, _ := server(t)
	tests := []struct {
		name   string
		change func(*Options)
		kind   mvm.Kind
	}{
		{"no server", func(o *Options) { o.URL = gone.URL + "/f" }, mvm.ErrUnavailable},
		{"always fails", func(o *Options) {
			o.URL, _ = server(t, status(500), status(500), status(500), status(500), status(500))
		}, mvm.ErrUnavailable},
		{"not there", func(o *Options) { o.URL = good + "x" }, mvm.ErrNotFound},
		{"forbidden", func(o *Options) { o.URL, _ = server(t, status(403)) }, mvm.ErrUnavailable},
		{"other content", func(o *Options) { o.Digest = Digest(sumOf([]byte("other"))) }, mvm.ErrBroken},
		{"no sum", func(o *Options) { o.Digest = "abc" }, mvm.ErrInvalid},
		{"half a sum", func(o *Options) { o.Digest = "abcd" }, mvm.ErrInvalid},
		{"too large", func(o *Options) { o.MaxBytes = 100 }, mvm.ErrInvalid},
		{"no address", func(o *Options) { o.URL = "file:///etc/passwd" }, mvm.ErrInvalid},
		{"mirror without it", func(o *Options) { o.Mirror = "/nonexistent" }, mvm.ErrNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := opts(t, good)
			write(t, o.Dest, []byte("old"))
			tt.change(&o)
			err := Fetch(t.Context(), o)
			if !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v (hint %q), want kind %q", err, mvm.HintOf(err), tt.kind)
			}
			if got, _ := os.ReadFile(o.Dest); string(got) != "old" {
				t.Errorf("the old file became %.20q", got)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	url, _ := server(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(content[:10])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
	})
	if err := Fetch(ctx, opts(t, url)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestTogether(t *testing.T) {
	url, ranges := server(t)
	o := opts(t, url)
	var failed atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := Fetch(t.Context(), o); err != nil {
				t.Error(err)
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	wantWhole(t, o)
	if n := len(ranges()); n != 1 {
		t.Errorf("%d downloads", n)
	}
}

func TestMirror(t *testing.T) {
	const url = "https://downloads.invalid/a/b/file?x=1"
	mirror := t.TempDir()
	o := opts(t, url)
	o.Mirror = mirror
	write(t, filepath.Join(mirror, "file"), content)
	if err := Fetch(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, o)

	// The full path goes before the plain name.
	if err := os.MkdirAll(filepath.Join(mirror, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(mirror, "a", "b", "file"), []byte("better"))
	if got, err := Read(t.Context(), url, mirror, 10); err != nil || string(got) != "better" {
		t.Errorf("read %q, error %v", got, err)
	}
	if _, err := Read(t.Context(), url, mirror, 5); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("too large: %v", err)
	}

	srv := httptest.NewServer(http.FileServer(http.Dir(mirror)))
	defer srv.Close()
	if got, err := Read(t.Context(), url, srv.URL, 10); err != nil || string(got) != "better" {
		t.Errorf("over http: read %q, error %v", got, err)
	}
	if _, err := Read(t.Context(), "https://downloads.invalid/../../../etc/passwd", mirror, 1000); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("left the mirror: %v", err)
	}
}
