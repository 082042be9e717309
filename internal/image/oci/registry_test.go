package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// file is one of a layer.
type file struct {
	name, data, link string
	typ              byte
	mode             int64
	uid              int
	xattr            string
}

func layerTar(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.typ, Linkname: f.link, Mode: f.mode, Uid: f.uid, Gid: f.uid, Size: int64(len(f.data)), ModTime: time.Unix(1600000000, 0), Format: tar.FormatPAX}
		if f.typ == 0 {
			h.Typeflag = tar.TypeReg
		}
		if f.mode == 0 {
			h.Mode = 0o755
		}
		if f.xattr != "" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": f.xattr}
		}
		_, err := w.Write(nil)
		if err = errors.Join(err, w.WriteHeader(h)); err == nil {
			_, err = io.WriteString(w, f.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// makeImage is an image for an architecture, with a layer by gzip, one by zstd and a
// plain one.
func makeImage(t testing.TB, arch string, cfg v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for n, data := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if n%3 == 1 {
			l, err = zstdLayer(data)
		}
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", arch, cfg
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// packed is a layer whose compressed form was made here.
type packed struct {
	v1.Layer
	data []byte
	hash v1.Hash
}

func zstdLayer(data []byte) (v1.Layer, error) {
	inner, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	p := packed{Layer: inner, data: enc.EncodeAll(data, nil)}
	p.hash, _, err = v1.SHA256(bytes.NewReader(p.data))
	return p, err
}

func (p packed) Digest() (v1.Hash, error) { return p.hash, nil }
func (p packed) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(p.data)), nil
}
func (p packed) Size() (int64, error)                { return int64(len(p.data)), nil }
func (p packed) MediaType() (types.MediaType, error) { return types.OCILayerZStd, nil }

// server is a registry on this host, which may want a password and may be made to
// change what it sends.
type server struct {
	*httptest.Server
	user, password string
	change         func(http.ResponseWriter, *http.Request) bool // true has answered
}

func newServer(t testing.TB) *server {
	s := &server{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); s.user != "" && (u != s.user || p != s.password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if s.change == nil || !s.change(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return strings.TrimPrefix(s.URL, "http://") }

func (s *server) push(t testing.TB, path string, img remote.Taggable) {
	t.Helper()
	ref, err := name.ParseReference(s.host() + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if i, ok := img.(v1.ImageIndex); ok {
		err = remote.WriteIndex(ref, i)
	} else if i, ok := img.(v1.Image); ok {
		err = remote.Write(ref, i)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// docker has the credentials that `docker login` would store.
func docker(t *testing.T, registry, user, password string) {
	t.Helper()
	dir := t.TempDir()
	data, _ := json.Marshal(map[string]any{"auths": map[string]any{registry: map[string]string{"username": user, "password": password}}})
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HOME", dir)
}

func pull(t *testing.T, ref string, o Options) (Pulled, error) {
	t.Helper()
	r, err := ParseRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	if o.Dest == "" {
		o.Dest = filepath.Join(t.TempDir(), "images", "x")
	}
	o.Runner, o.backoff = &run.Host{}, &remote.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 2}
	p, err := Pull(context.Background(), r, o)
	if err != nil {
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(o.Dest), "*"))
		hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(o.Dest), ".build-*"))
		hidden = slices.DeleteFunc(append(hidden, left...), func(s string) bool { return filepath.Base(s) == ".build.lock" })
		if len(hidden) > 0 {
			t.Errorf("left behind: %v", hidden)
		}
		if mvm.HintOf(err) == "" {
			t.Errorf("no hint: %v", err)
		}
	}
	return p, err
}

func debugfs(t *testing.T, img, request string) string {
	t.Helper()
	testenv.Require(t, "e2fsprogs")
	res, err := (&run.Host{}).Run(context.Background(), run.Cmd{Name: "debugfs", Args: []string{"-R", request, img}})
	if err != nil {
		t.Fatal(err)
	}
	return string(res.Stdout)
}

func fsck(t *testing.T, img string) {
	t.Helper()
	testenv.Require(t, "e2fsprogs")
	if _, err := (&run.Host{}).Run(context.Background(), run.Cmd{Name: "e2fsck", Args: []string{"-fn", img}}); err != nil {
		t.Error(err)
	}
}

const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var config = v1.Config{
	Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"PATH=/bin", "X=1"}, User: "app:staff", WorkingDir: "/srv",
	StopSignal: "SIGQUIT", ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}}, Labels: map[string]string{"l": "v"},
}

func testLayers(t testing.TB) [][]byte {
	return [][]byte{
		layerTar(t, file{name: "bin/", typ: tar.TypeDir}, file{name: "bin/sh", data: "one", uid: 7, xattr: capability}, file{name: "etc/os-release", data: "ID=alpine\nVERSION_ID=\"3.20\"\n"}, file{name: "old/x", data: "x"}),
		layerTar(t, file{name: "bin/ash", typ: tar.TypeLink, link: "bin/sh"}, file{name: ".wh.old"}, file{name: "srv/", typ: tar.TypeDir, uid: 1000}),
		layerTar(t, file{name: "srv/data", data: strings.Repeat("data", 5000), mode: 0o4711}, file{name: "lib", typ: tar.TypeSymlink, link: "usr/lib"}),
	}
}
