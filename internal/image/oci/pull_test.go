package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/mvmctl/mvm"
)

func TestPull(t *testing.T) {
	s := newServer(t)
	s.push(t, "team/app:1.0", mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: makeImage(t, "arm64", config, layerTar(t, file{name: "arm", data: "x"})), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: makeImage(t, "amd64", config, testLayers(t)...), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}}))
	ref := Scheme + s.host() + "/team/app:1.0"
	var last mvm.ProgressEvent
	p, err := pull(t, ref, Options{Arch: "x86_64", Progress: func(e mvm.ProgressEvent) {
		if e.Phase == "download" {
			last = e
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last.Current != last.Total || last.Total != p.Compressed || p.Compressed == 0 {
		t.Errorf("progress ended with %+v of %d bytes", last, p.Compressed)
	}
	fsck(t, p.Path)
	if got := debugfs(t, p.Path, "ls -p /"); strings.Contains(got, "/old/") || !strings.Contains(got, "/srv/") {
		t.Errorf("root has %s", got)
	}
	if got := debugfs(t, p.Path, "stat /bin/ash"); !strings.Contains(got, "Links: 2") || !strings.Contains(got, "User:     7") || !strings.Contains(got, "security.capability (20)") {
		t.Errorf("/bin/ash is %s", got)
	}
	if got := debugfs(t, p.Path, "cat /srv/data"); got != strings.Repeat("data", 5000) {
		t.Errorf("/srv/data has %d bytes", len(got))
	}
	want := fmt.Sprintf("%s %s x86_64 checksum alpine 3.20", Scheme+s.host()+"/team/app", "1.0")
	if got := strings.Join([]string{p.Type, p.Version, p.Arch, p.Verification, p.Distro}, " "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	c, _ := json.Marshal(p.Container)
	if string(c) != `{"entrypoint":["/entry"],"cmd":["a","b"],"env":["PATH=/bin","X=1"],"working_dir":"/srv","user":"app:staff","stop_signal":"QUIT","exposed_ports":["443/tcp","80/tcp"],"volumes":[],"labels":{"l":"v"}}` {
		t.Errorf("container %s", c)
	}
	again, err := pull(t, p.Source, Options{Arch: "x86_64"}) // by its digest
	if err != nil || again.Digest != p.Digest || !strings.HasPrefix(again.Version, "sha256:") {
		t.Errorf("by digest: %+v, %v", again, err)
	}
	if arm, err := pull(t, ref, Options{Arch: "aarch64"}); err != nil || !strings.Contains(debugfs(t, arm.Path, "ls -p /"), "/arm/") {
		t.Errorf("for arm64: %v", err)
	}
	if _, err := pull(t, ref, Options{Arch: "riscv64"}); !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) != "it is there for linux/amd64, linux/arm64" {
		t.Errorf("for riscv64: %v, %s", err, mvm.HintOf(err))
	}
	s.push(t, "arm:1", makeImage(t, "arm64", config, testLayers(t)...))
	if _, err := pull(t, Scheme+s.host()+"/arm:1", Options{Arch: "x86_64"}); !errors.Is(err, mvm.ErrUnsupported) {
		t.Errorf("an image of another architecture: %v", err)
	}
	if _, err := pull(t, Scheme+s.host()+"/team/app:2.0", Options{}); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("a tag that is not there: %v", err)
	}
}

func TestPullWithCredentials(t *testing.T) {
	s := newServer(t)
	s.push(t, "app", makeImage(t, runtime.GOARCH, config, testLayers(t)...))
	s.user, s.password = "me", "hunter2-secret"
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	ref := Scheme + s.host() + "/app"
	_, err := pull(t, ref, Options{})
	if !errors.Is(err, mvm.ErrPrivilege) || !strings.Contains(mvm.HintOf(err), "docker login "+s.host()) {
		t.Errorf("without credentials: %v, %s", err, mvm.HintOf(err))
	}
	docker(t, s.host(), "me", "hunter3-wrong")
	if _, err := pull(t, ref, Options{}); !errors.Is(err, mvm.ErrPrivilege) || strings.Contains(err.Error(), "hunter") {
		t.Errorf("with wrong ones: %v", err)
	}
	docker(t, s.host(), s.user, s.password)
	if _, err := pull(t, ref, Options{}); err != nil {
		t.Errorf("with right ones: %v", err)
	}
	// By a credential helper, a program that docker's configuration names.
	dir := t.TempDir()
	helper := "#!/bin/sh\ncat >/dev/null\necho '{\"Username\":\"me\",\"Secret\":\"hunter2-secret\"}'\n"
	err = errors.Join(os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755),
		os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credHelpers":{"`+s.host()+`":"test"}}`), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HOME", dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if _, err := pull(t, ref, Options{}); err != nil {
		t.Errorf("by a helper: %v", err)
	}
}

func TestPullFromFiles(t *testing.T) {
	img := makeImage(t, runtime.GOARCH, config, testLayers(t)...)
	dir := t.TempDir()
	tag, err := name.NewTag("team/app:1.0")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "saved.tar")
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		t.Fatal(err)
	}
	mirror := filepath.Join(dir, "docker.io/library/app")
	path, err := layout.Write(mirror, empty.Index)
	if err == nil {
		err = path.AppendImage(img, layout.WithAnnotations(map[string]string{refName: "1.0"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ ref, typ, version, mirror string }{
		{"docker-archive:" + archive, "oci://team/app", "1.0", ""},
		{"docker-archive:" + archive + ":team/app:1.0", "oci://team/app", "1.0", ""},
		{"oci-layout:" + mirror, "oci://app", "1.0", ""},
		{"oci-layout:" + mirror + ":1.0", "oci://app", "1.0", ""},
		{"oci://app:1.0", "oci://app", "1.0", dir},
	} {
		p, err := pull(t, tc.ref, Options{Mirror: tc.mirror})
		if err != nil {
			t.Errorf("%s: %v", tc.ref, err)
			continue
		}
		fsck(t, p.Path)
		if p.Type != tc.typ || p.Version != tc.version || p.Verification != mvm.VerifiedLocal {
			t.Errorf("%s: %s %s %s", tc.ref, p.Type, p.Version, p.Verification)
		}
		if got := debugfs(t, p.Path, "cat /bin/ash"); got != "one" {
			t.Errorf("%s: /bin/ash has %q", tc.ref, got)
		}
	}
	for ref, want := range map[string]mvm.Kind{
		"docker-archive:" + filepath.Join(dir, "no.tar"): mvm.ErrNotFound, "docker-archive:" + archive + ":other:1": mvm.ErrInvalid,
		"oci-layout:" + mirror + ":2.0": mvm.ErrNotFound, "oci-layout:" + dir: mvm.ErrInvalid, "docker-archive:" + filepath.Join(mirror, "index.json"): mvm.ErrInvalid,
	} {
		if _, err := pull(t, ref, Options{}); !errors.Is(err, want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := pull(t, "oci://other", Options{Mirror: dir}); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("not in the mirror: %v", err)
	}
	// A blob that was changed on the disk.
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []v1.Hash{m.Layers[0].Digest, m.Config.Digest} {
		blob := filepath.Join(mirror, "blobs", "sha256", h.Hex)
		data, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.Clone(data)
		changed[len(changed)/2] ^= 1
		if err := os.WriteFile(blob, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := pull(t, "oci-layout:"+mirror, Options{}); err == nil || !strings.Contains(err.Error(), "digest") {
			t.Errorf("changed %s: %v", h, err)
		}
		if err := os.WriteFile(blob, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPullFromMirrorByURL(t *testing.T) {
	s := newServer(t)
	s.push(t, "library/app:1.0", makeImage(t, runtime.GOARCH, config, testLayers(t)...))
	p, err := pull(t, "oci://app:1.0", Options{Mirror: s.URL})
	if err != nil || p.Type != "oci://app" || p.Source != "oci://app@"+p.Digest {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestHostileImages(t *testing.T) {
	s := newServer(t)
	good := testLayers(t)
	for name, tc := range map[string]struct {
		cfg    v1.Config
		layers [][]byte
		want   mvm.Kind
	}{
		"escape":         {config, [][]byte{layerTar(t, file{name: "../../etc/x", data: "x"})}, mvm.ErrInvalid},
		"link-out":       {config, [][]byte{layerTar(t, file{name: "x", typ: tar.TypeLink, link: "../../etc/passwd"})}, mvm.ErrInvalid},
		"whiteout-up":    {config, [][]byte{layerTar(t, file{name: "a/.wh..."})}, mvm.ErrInvalid},
		"no-layer":       {config, nil, mvm.ErrInvalid},
		"environment":    {v1.Config{Env: []string{"=x"}}, good, mvm.ErrInvalid},
		"signal":         {v1.Config{StopSignal: "SIGNO"}, good, mvm.ErrInvalid},
		"zero-byte":      {v1.Config{User: "a\x00b"}, good, mvm.ErrInvalid},
		"large-config":   {v1.Config{Cmd: []string{strings.Repeat("x", 100<<10)}}, good, mvm.ErrInvalid},
		"not-a-tar":      {config, [][]byte{bytes.Repeat([]byte("x"), 2000)}, mvm.ErrInvalid},
		"below-a-file":   {config, [][]byte{layerTar(t, file{name: "a", data: "x"}), layerTar(t, file{name: "a/b", data: "x"})}, mvm.ErrInvalid},
		"cut-in-half":    {config, [][]byte{good[0][:len(good[0])/2]}, mvm.ErrInvalid},
		"symlink-parent": {config, [][]byte{layerTar(t, file{name: "a", typ: tar.TypeSymlink, link: "b"}, file{name: "b", typ: tar.TypeSymlink, link: "a"}, file{name: "a/x"})}, mvm.ErrInvalid},
	} {
		s.push(t, "h/"+name, makeImage(t, runtime.GOARCH, tc.cfg, tc.layers...))
		if _, err := pull(t, Scheme+s.host()+"/h/"+name, Options{}); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.push(t, "app", makeImage(t, runtime.GOARCH, config, good...))
	inner := s.Config.Handler
	var flipped atomic.Bool
	s.change = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") || flipped.Swap(true) {
			return false
		}
		rec := httptest.NewRecorder()
		inner.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		body[len(body)/2] ^= 1
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
		return true
	}
	if _, err := pull(t, Scheme+s.host()+"/app", Options{}); err == nil {
		t.Error("a changed blob was taken")
	}
}

func TestPlainHTTPIsForThisHostOnly(t *testing.T) {
	g := &guard{base: http.DefaultTransport}
	for url, ok := range map[string]bool{"http://10.0.0.1/v2/": false, "http://registry.local/v2/": false, "http://192.168.1.1:5000/": false} {
		r, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.RoundTrip(r); errors.Is(err, errPlain) == ok {
			t.Errorf("%s: %v", url, err)
		}
	}
	for host, want := range map[string]bool{"localhost": true, "127.0.0.9": true, "::1": true, "10.0.0.1": false, "localhost.example.com": false} {
		if loopback(host) != want {
			t.Errorf("%s", host)
		}
	}
}

func TestParseRef(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	for in, want := range map[string]string{
		"oci://alpine": "oci://alpine:latest", "oci://alpine:3.20": "oci://alpine:3.20", "oci://docker.io/library/alpine": "oci://alpine:latest",
		"oci://docker.io/me/app:1": "oci://me/app:1", "oci://ghcr.io/o/app": "oci://ghcr.io/o/app:latest", "oci://localhost:5000/app:x": "oci://localhost:5000/app:x",
		"oci://alpine@" + digest: "oci://alpine@" + digest, "oci://alpine:3@" + digest: "oci://alpine@" + digest, "docker-archive:/tmp/x.tar:a:b": "docker-archive:/tmp/x.tar:a:b",
	} {
		r, err := ParseRef(in)
		if err != nil || r.String() != want || !IsRef(in) {
			t.Errorf("%s: %s, %v", in, r, err)
		}
	}
	for _, in := range []string{"oci://", "oci://UPPER", "oci://a b", "oci://alpine@sha256:12", "oci-layout:", "alpine", "oci://../x"} {
		if r, err := ParseRef(in); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %s, %v", in, r, err)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"oci://alpine:3.20", "oci://ghcr.io/a/b@sha256:00", "docker-archive:x:y:z", "oci-layout:/a:b", "oci://[::1]:5000/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		if again, err := ParseRef(r.String()); err != nil || again.String() != r.String() {
			t.Errorf("%q became %q, then %q, %v", s, r.String(), again.String(), err)
		}
	})
}

func FuzzConfig(f *testing.F) {
	data, _ := json.Marshal(config)
	f.Add(data)
	f.Add([]byte(`{"Env":["A"],"StopSignal":"37"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c v1.Config
		if json.Unmarshal(data, &c) != nil {
			return
		}
		got, err := container(c)
		if err != nil {
			return
		}
		if !strings.HasPrefix(got.WorkingDir, "/") || strings.ContainsRune(got.User, 0) {
			t.Errorf("%+v", got)
		}
	})
}
