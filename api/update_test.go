package api

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"

	"github.com/mvmctl/mvm"
)

// feed is a web server with releases of a program, as a project on GitHub has them.
type feed struct {
	t      *testing.T
	server *httptest.Server
	key    *openpgp.Entity
	files  map[string][]byte
	list   []map[string]any
}

func newFeed(t *testing.T) *feed {
	t.Helper()
	key, err := openpgp.NewEntity("makers", "", "makers@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	f := &feed{t: t, key: key, files: map[string][]byte{}}
	f.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, ok := f.files[r.URL.Path]
		if r.URL.Path == "/releases" {
			data, _ = json.Marshal(f.list)
			ok = true
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(f.server.Close)
	return f
}

// program is a stand-in for mvm that says which version it is.
func program(version string) []byte { return []byte("#!/bin/sh\necho mvm " + version + "\n") }

// release publishes a version whose program says what it says.
func (f *feed) release(version, says string, prerelease bool) {
	f.t.Helper()
	name := fmt.Sprintf("mvm_%s_linux_%s.tar.gz", version, runtime.GOARCH)
	var archive bytes.Buffer
	z := gzip.NewWriter(&archive)
	tw := tar.NewWriter(z)
	body := program(says)
	for _, h := range []*tar.Header{{Name: "./share/doc/mvm/LICENSE", Mode: 0o644}, {Name: "./bin/mvm", Mode: 0o755, Size: int64(len(body))}} {
		if err := tw.WriteHeader(h); err != nil {
			f.t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = tw.Write(body)
		}
	}
	_, _ = tw.Close(), z.Close()
	sums := []byte(fmt.Sprintf("%x  %s\n", sha256.Sum256(archive.Bytes()), name))
	dir := "/v" + version + "/"
	f.files[dir+name], f.files[dir+"SHA256SUMS"], f.files[dir+"SHA256SUMS.asc"] = archive.Bytes(), sums, f.sign(f.key, sums)
	var assets []map[string]any
	for _, n := range []string{name, "SHA256SUMS", "SHA256SUMS.asc"} {
		assets = append(assets, map[string]any{"name": n, "browser_download_url": f.server.URL + dir + n, "size": len(f.files[dir+n])})
	}
	f.list = append(f.list, map[string]any{"tag_name": "v" + version, "prerelease": prerelease, "assets": assets})
}

func (f *feed) sign(key *openpgp.Entity, data []byte) []byte {
	f.t.Helper()
	var b bytes.Buffer
	if err := openpgp.ArmoredDetachSign(&b, key, bytes.NewReader(data), nil); err != nil {
		f.t.Fatal(err)
	}
	return b.Bytes()
}

// trust puts the makers' key where users put it.
func (f *feed) trust(m *Client) {
	f.t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err == nil {
		err = f.key.Serialize(w)
	}
	if err == nil {
		err = w.Close()
	}
	dir := m.core.paths.trustedKeys()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "mvm.asc"), b.Bytes(), 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// updatable is a client whose program is a file that may be replaced.
func updatable(t *testing.T) (*Client, *feed) {
	t.Helper()
	w := newWorld(t)
	m := w.open()
	f := newFeed(t)
	bin := filepath.Join(w.dir, "bin")
	link := filepath.Join(w.dir, "mvm")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "mvm"), program(Version), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(bin, "mvm"), link); err != nil {
		t.Fatal(err)
	}
	m.core.cfg.Executable = link
	f.trust(m)
	if _, err := m.Config.Set(t.Context(), "settings.update", "feed_url", f.server.URL+"/releases"); err != nil {
		t.Fatal(err)
	}
	return m, f
}

// says runs the program of a client.
func says(t *testing.T, m *Client) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), m.core.cfg.Executable).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(out), "mvm "))
}

func TestUpdate(t *testing.T) {
	m, f := updatable(t)
	ctx := t.Context()
	for _, v := range []string{"1.2.0", "1.10.0", "1.9.0"} {
		f.release(v, v, false)
	}
	f.release("2.0.0-rc.1", "2.0.0-rc.1", true)

	res, err := m.Update.Check(ctx, UpdateInput{})
	if err != nil || !res.Available || res.Version != "1.10.0" || res.Current != Version {
		t.Fatalf("%+v, %v", res, err)
	}
	if got := says(t, m); got != Version {
		t.Errorf("a check replaced the program by %s", got)
	}
	if res, err = m.Update.Apply(ctx, UpdateInput{}); err != nil || !res.Updated || len(res.SignedBy) != 40 || says(t, m) != "1.10.0" {
		t.Errorf("%+v, %v, and it says %s", res, err, says(t, m))
	}
	if res, err = m.Update.Apply(ctx, UpdateInput{Version: "v2.0.0-rc.1"}); err != nil || says(t, m) != "2.0.0-rc.1" {
		t.Errorf("%+v, %v, and it says %s", res, err, says(t, m))
	}
	for _, want := range []string{"1.10.0", "2.0.0-rc.1", "1.10.0"} { // there and back
		if res, err := m.Update.Rollback(ctx); err != nil || res.Version != want || says(t, m) != want {
			t.Errorf("%+v, %v, and it says %s", res, err, says(t, m))
		}
	}
	_, err = m.Update.Apply(ctx, UpdateInput{Version: "1.10.1"})
	refused(t, err, mvm.ErrNotFound, `no release "1.10.1"`)
	left, err := filepath.Glob(filepath.Join(filepath.Dir(m.core.cfg.Executable), "bin", "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("beside the program and the one before there are %q (%v)", left, err)
	}
}

func TestUpdateRefused(t *testing.T) {
	other, err := openpgp.NewEntity("others", "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	const archive = "/v1.0.0/mvm_1.0.0_linux_" + runtime.GOARCH + ".tar.gz"
	for name, test := range map[string]struct {
		spoil func(m *Client, f *feed)
		kind  mvm.Kind
		says  string
	}{
		"signed by somebody else": {func(_ *Client, f *feed) {
			f.files["/v1.0.0/SHA256SUMS.asc"] = f.sign(other, f.files["/v1.0.0/SHA256SUMS"])
		}, mvm.ErrBroken, "not signed by a key of mvm"},
		"another list than was signed": {func(_ *Client, f *feed) {
			f.files["/v1.0.0/SHA256SUMS"] = bytes.Replace(f.files["/v1.0.0/SHA256SUMS"], []byte("mvm_1"), []byte("mvm_2"), 1)
		}, mvm.ErrBroken, "signature"},
		"a changed archive": {func(_ *Client, f *feed) { f.files[archive][20] ^= 1 }, mvm.ErrBroken, ""},
		"no key":            {func(m *Client, _ *feed) { _ = os.RemoveAll(m.core.paths.trustedKeys()) }, mvm.ErrNotFound, "no key of mvm"},
		"another version inside": {func(_ *Client, f *feed) {
			f.list = nil
			f.release("1.0.0", "0.9.0", false)
		}, mvm.ErrBroken, `says that it is version "0.9.0"`},
		"no archive for this machine": {func(_ *Client, f *feed) {
			f.list[0]["assets"] = f.list[0]["assets"].([]map[string]any)[1:]
		}, mvm.ErrNotFound, "has no mvm_1.0.0_linux"},
		"a package": {func(m *Client, _ *feed) {
			real, _ := filepath.EvalSymlinks(m.core.cfg.Executable)
			m.core.packageFiles = filepath.Join(t.TempDir(), "mvm.list")
			_ = os.WriteFile(m.core.packageFiles, []byte("/.\n"+real+"\n"), 0o600)
		}, mvm.ErrConflict, "belongs to the package"},
		"no list": {func(_ *Client, f *feed) { f.list = nil }, mvm.ErrNotFound, "no release"},
	} {
		t.Run(name, func(t *testing.T) {
			m, f := updatable(t)
			f.release("1.0.0", "1.0.0", false)
			test.spoil(m, f)
			_, err := m.Update.Apply(t.Context(), UpdateInput{})
			refused(t, err, test.kind, test.says)
			if got := says(t, m); got != Version {
				t.Errorf("the program is %s now", got)
			}
			_, err = m.Update.Rollback(t.Context())
			if err == nil {
				t.Error("rolled back to nothing")
			}
			if left, err := filepath.Glob(filepath.Join(filepath.Dir(m.core.cfg.Executable), "bin", "*")); err != nil || len(left) != 1 {
				t.Errorf("left are %q (%v)", left, err)
			}
		})
	}
}
