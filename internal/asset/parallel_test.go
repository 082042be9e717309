package asset

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
)

// partServer serves content and counts how many requests for parts are being
// answered at once, by waiting until two are, or the file is nearly loaded.
type partServer struct {
	mu     sync.Mutex
	served []string // the ranges asked for
	refuse func(n int, w http.ResponseWriter, r *http.Request) bool
	etag   string
}

func (s *partServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n := len(s.served)
	s.served = append(s.served, r.Header.Get("Range"))
	s.mu.Unlock()
	if s.refuse != nil && s.refuse(n, w, r) {
		return
	}
	if s.etag != "" {
		w.Header().Set("ETag", s.etag)
	}
	http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(content))
}

func TestParts(t *testing.T) {
	const chunk = 16 << 10 // of 256 KiB: 16 parts
	tests := []struct {
		name     string
		refuse   func(n int, w http.ResponseWriter, r *http.Request) bool
		etag     string
		noSum    bool
		parallel int
		requests int // 0: do not count
	}{
		{name: "all parts", requests: 16},
		{name: "one connection only", parallel: 1, requests: 1},
		{name: "no digest and no strong validator", noSum: true, etag: `W/"x"`, requests: 1},
		{name: "no digest, strong validator", noSum: true, etag: `"x"`, requests: 16},
		{name: "parts are limited", refuse: func(n int, w http.ResponseWriter, _ *http.Request) bool {
			if n > 0 && n < 4 {
				w.WriteHeader(http.StatusTooManyRequests)
			}
			return n > 0 && n < 4
		}},
		{name: "parts are answered by the whole", refuse: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				_, _ = w.Write(content)
			}
			return n > 0
		}},
		{name: "a part breaks off", refuse: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 5 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 1-2/%d", len(content)))
				w.WriteHeader(http.StatusPartialContent)
				panic(http.ErrAbortHandler)
			}
			return false
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &partServer{refuse: tt.refuse, etag: tt.etag}
			srv := httptest.NewServer(s)
			defer srv.Close()
			o := opts(t, srv.URL+"/dir/file")
			o.chunk, o.Parallel = chunk, tt.parallel
			if tt.noSum {
				o.Digest = ""
			}
			var last mvm.ProgressEvent
			o.Progress = func(e mvm.ProgressEvent) { last = e }
			if err := Fetch(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			wantWhole(t, o)
			if last.Current != int64(len(content)) || last.Total != int64(len(content)) {
				t.Errorf("last progress %+v", last)
			}
			if tt.requests > 0 && len(s.served) != tt.requests {
				t.Errorf("%d requests, want %d: %q", len(s.served), tt.requests, s.served)
			}
		})
	}
}

// TestPartsAreLoadedAtOnce has a server that answers no part before a second one
// is asked for.
func TestPartsAreLoadedAtOnce(t *testing.T) {
	second := make(chan struct{})
	var once sync.Once
	s := &partServer{}
	s.refuse = func(n int, _ http.ResponseWriter, r *http.Request) bool {
		if n == 1 {
			select {
			case <-second:
			case <-r.Context().Done():
			}
		}
		if n == 2 {
			once.Do(func() { close(second) })
		}
		return false
	}
	srv := httptest.NewServer(s)
	defer srv.Close()
	o := opts(t, srv.URL+"/dir/file")
	o.chunk = 16 << 10
	if err := Fetch(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, o)
}

// TestPartsLeaveNoHole ends a download in the middle of its parts: what is there
// is the beginning of the file, and the next one goes on with it.
func TestPartsLeaveNoHole(t *testing.T) {
	s := &partServer{}
	s.refuse = func(n int, w http.ResponseWriter, _ *http.Request) bool {
		if n >= 6 {
			w.WriteHeader(http.StatusForbidden)
		}
		return n >= 6
	}
	srv := httptest.NewServer(s)
	defer srv.Close()
	o := opts(t, srv.URL+"/dir/file")
	o.chunk = 16 << 10
	if err := Fetch(t.Context(), o); !errors.Is(err, mvm.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(o.Dest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something looks complete: %v", err)
	}
	part, err := os.ReadFile(o.Dest + ".part")
	if err != nil || len(part) == 0 || !bytes.HasPrefix(content, part) {
		t.Fatalf("%d bytes are there, error %v; want the beginning of the file", len(part), err)
	}
	before := len(s.served)
	s.refuse = nil
	if err := Fetch(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, o)
	if want := fmt.Sprintf("bytes=%d-", len(part)); s.served[before] != want {
		t.Errorf("it went on with %q, want %q", s.served[before], want)
	}
}

func TestMeter(t *testing.T) {
	at := time.Unix(0, 0)
	m := meter{now: func() time.Time { return at }}
	for i := range int64(100) { // 1000 bytes a second
		m.add(100 * i)
		at = at.Add(100 * time.Millisecond)
	}
	e, ok := m.event("f", 10_000, 20_000, false)
	if !ok || e.Rate < 950 || e.Rate > 1050 || e.Left < 9*time.Second || e.Left > 11*time.Second {
		t.Errorf("at 1000 bytes a second with 10000 to go: %+v, %v", e, ok)
	}
	if _, ok := m.event("f", 10_001, 20_000, false); ok {
		t.Error("two events at one time")
	}
	if e, ok := m.event("f", 20_000, 20_000, true); !ok || e.Left != 0 {
		t.Errorf("at the end: %+v, %v", e, ok)
	}
	at = at.Add(time.Minute) // nothing for a minute
	if e, _ := m.event("f", 20_000, 40_000, true); e.Rate > 500 {
		t.Errorf("a minute without data, and the rate is %d", e.Rate)
	}
	m.add(5) // begun anew
	if e, _ := m.event("f", 5, 40_000, true); e.Rate != 0 {
		t.Errorf("begun anew, and the rate is %d", e.Rate)
	}
}

func TestRedirects(t *testing.T) {
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }))
	defer target.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, target.URL+"/f?token=secret", http.StatusFound)
	}))
	defer secure.Close()
	tr := client.Transport.(*http.Transport)
	old := tr.TLSClientConfig
	tr.TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig
	defer func() { tr.TLSClientConfig = old }()
	sends := func(to string) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	tests := []struct {
		name, url string
		kind      mvm.Kind // "" when it works
	}{
		{"http to http", sends(target.URL + "/f"), ""},
		{"https to http", secure.URL, mvm.ErrInvalid},
		{"to a file", sends("file:///etc/passwd"), mvm.ErrInvalid},
		{"to ftp", sends("ftp://127.0.0.1/x"), mvm.ErrInvalid},
		{"for ever", "", mvm.ErrUnavailable},
	}
	loop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }))
	defer loop.Close()
	tests[4].url = loop.URL + "/f"
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := opts(t, tt.url)
			err := Fetch(t.Context(), o)
			if tt.kind == "" {
				if err != nil {
					t.Fatal(err)
				}
				wantWhole(t, o)
				return
			}
			if !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" || bytes.Contains([]byte(err.Error()), []byte("secret")) {
				t.Errorf("got %v (hint %q), want kind %q", err, mvm.HintOf(err), tt.kind)
			}
			if _, err := os.Stat(o.Dest); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something looks complete: %v", err)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q gives %v, want %v", value, got, want)
		}
	}
	url, ranges := server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	err := Fetch(t.Context(), opts(t, url))
	if !errors.Is(err, mvm.ErrUnavailable) || !bytes.Contains([]byte(err.Error()), []byte("1h0m0s")) || len(ranges()) != 1 {
		t.Errorf("a server that asks to wait for an hour gave %v after %d requests", err, len(ranges()))
	}
}

func TestTransport(t *testing.T) {
	var n int
	codes := []int{503, 429, 200}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(codes[min(n, len(codes)-1)])
		n++
	}))
	defer srv.Close()
	c := &http.Client{Transport: &Transport{Backoff: time.Microsecond}}
	try := func(method string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := try(http.MethodGet); got != 200 || n != 3 {
		t.Errorf("GET gave %d after %d requests", got, n)
	}
	n = 0
	if got := try(http.MethodPost); got != 503 || n != 1 {
		t.Errorf("POST gave %d after %d requests: it may not be sent twice", got, n)
	}
	n, codes = 0, []int{500}
	if got := try(http.MethodGet); got != 500 || n != attempts {
		t.Errorf("a server that always fails gave %d after %d requests", got, n)
	}
}

func TestProxy(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host != "downloads.invalid" { // as a proxy is asked: by the whole address
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = w.Write(content)
	}))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	o := opts(t, "http://downloads.invalid/f")
	if err := Fetch(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, o)
	t.Setenv("NO_PROXY", "downloads.invalid")
	if err := Fetch(t.Context(), Options{URL: o.URL, Dest: filepath.Join(t.TempDir(), "f"), Backoff: time.Microsecond}); !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("without the proxy: %v", err)
	}
}

func TestShown(t *testing.T) {
	for raw, want := range map[string]string{
		"https://u:secret@h/p?sig=secret#x": "https://u:xxxxx@h/p",
		"https://h/p":                       "https://h/p",
		"http://[::1":                       "an address that cannot be read",
	} {
		if got := Shown(raw); got != want {
			t.Errorf("%q is shown as %q, want %q", raw, got, want)
		}
	}
}
