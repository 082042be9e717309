package api

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

// releaseMirror is a directory in the shape of GitHub's downloads and API, with the
// releases named. Each program answers --version; of a release "x!bad" the checksum is
// another file's, of "x!none" there is none.
func releaseMirror(t *testing.T, releases ...string) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, data []byte) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	var listed []string
	for _, r := range releases {
		version, how, _ := strings.Cut(r, "!")
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		w := tar.NewWriter(z)
		for _, p := range []struct{ file, name string }{{"firecracker", "Firecracker"}, {"jailer", "Jailer"}} {
			body := fmt.Sprintf("#!/bin/sh\necho '%s v%s'\n", p.name, version)
			h := &tar.Header{Name: fmt.Sprintf("release-v%s-x86_64/%s-v%s-x86_64", version, p.file, version), Mode: 0o755, Size: int64(len(body)), Typeflag: tar.TypeReg}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
		name := "firecracker-v" + version + "-x86_64.tgz"
		at := "firecracker-microvm/firecracker/releases/download/v" + version + "/" + name
		put(at, out.Bytes())
		sum := sha256.Sum256(out.Bytes())
		if how == "bad" {
			sum = sha256.Sum256(nil)
		}
		if how != "none" {
			put(at+".sha256.txt", fmt.Appendf(nil, "%x  %s\n", sum, name))
		}
		listed = append(listed, fmt.Sprintf(`{"tag_name":"v%s","published_at":"2026-01-02T03:04:05Z","assets":[{"name":"%s","browser_download_url":"https://github.invalid/%s","size":%d}]}`, version, name, at, out.Len()))
	}
	put("repos/firecracker-microvm/firecracker/releases", []byte("["+strings.Join(listed, ",")+"]"))
	return dir
}

// have are the binaries in the cache, the default ones with a star.
func have(t *testing.T, m *Client) string {
	t.Helper()
	all, err := m.Binary.ListAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range all {
		if b.Name == binaryQEMU {
			continue
		}
		name := b.Name + ":" + b.Version
		if b.IsDefault {
			name += "*"
		}
		if !b.IsPresent {
			name += "!"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func TestBinaries(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	m.core.cfg.AssetMirror = releaseMirror(t, "1.16.1", "1.15.0", "1.9.0")
	ctx := t.Context()
	want := func(when, names string) {
		t.Helper()
		if got := have(t, m); got != names {
			t.Errorf("%s: %s, want %s", when, got, names)
		}
	}
	for _, v := range []string{"1.9.0", "1.16.1"} {
		if _, err := m.Binary.Pull(ctx, BinaryPullInput{Version: v}); err != nil {
			t.Fatal(err)
		}
	}
	want("two versions side by side", "firecracker:1.16.1 firecracker:1.9.0* jailer:1.16.1 jailer:1.9.0*")
	if b, err := m.Binary.SetDefault(ctx, BinaryInput{[]string{"firecracker"}}); err != nil || b.Version != "1.16.1" || b.Verification != mvm.VerifiedChecksum {
		t.Errorf("the type alone is %+v, %v", b, err)
	}
	want("the newest is the default, with its jailer", "firecracker:1.16.1* firecracker:1.9.0 jailer:1.16.1* jailer:1.9.0")
	remote, err := m.Binary.ListRemote(ctx, BinaryRemoteInput{Limit: 2})
	if err != nil || len(remote) != 2 || remote[0].Version != "1.16.1" || !remote[0].IsPresent || remote[1].Version != "1.15.0" || remote[1].IsPresent {
		t.Errorf("remote: %+v, %v", remote, err)
	}
	if _, err := m.Binary.RemoveByVersion(ctx, "v1.9.0", false); err != nil {
		t.Error(err)
	}
	want("without 1.9.0", "firecracker:1.16.1* jailer:1.16.1*")
	if _, err := m.Binary.RemoveByVersion(ctx, "1.9.0", false); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("removed again: %v", err)
	}
	files, _ := os.ReadDir(m.core.paths.binaries())
	if len(files) != 2 {
		t.Errorf("the directory has %v", files)
	}
	if _, err := m.Binary.Pull(ctx, BinaryPullInput{Version: "1.15.0"}); err != nil {
		t.Fatal(err)
	}
	res, err := m.Cache.PruneBinaries(ctx, PruneInput{})
	if err != nil || strings.Join(res.Removed, " ") != "firecracker:1.15.0 jailer:1.15.0" {
		t.Errorf("pruned: %+v, %v", res, err)
	}
	// A default whose file is gone is got again.
	if err := os.Remove(filepath.Join(m.core.paths.binaries(), "firecracker-v1.16.1")); err != nil {
		t.Fatal(err)
	}
	want("a file is gone", "firecracker:1.16.1*! jailer:1.16.1*")
	if b, err := m.Binary.EnsureDefault(ctx); err != nil || !b.IsPresent || b.Version != "1.16.1" {
		t.Errorf("EnsureDefault: %+v, %v", b, err)
	}
	want("and back", "firecracker:1.16.1* jailer:1.16.1*")
	if batch, err := m.Binary.Remove(ctx, BinaryInput{[]string{"jailer", "none"}}, false); !errors.Is(err, mvm.ErrNotFound) || len(batch.Items()) != 1 {
		t.Errorf("remove: %+v, %v", batch, err)
	}
	want("without the jailer", "firecracker:1.16.1*")
}

func TestBinaryPullIsRefused(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	m.core.cfg.AssetMirror = releaseMirror(t, "1.2.0!bad", "1.3.0!none")
	for _, tt := range []struct {
		in   BinaryPullInput
		kind mvm.Kind
	}{
		{BinaryPullInput{Version: "1.2.0"}, mvm.ErrBroken},
		{BinaryPullInput{Version: "1.3.0"}, mvm.ErrBroken},
		{BinaryPullInput{Version: "1.4.0"}, mvm.ErrNotFound},
		{BinaryPullInput{Version: "x"}, mvm.ErrInvalid},
		{BinaryPullInput{Name: "qemu"}, mvm.ErrUnsupported},
		{BinaryPullInput{GitRef: "v1", Version: "1.2.0"}, mvm.ErrInvalid},
		{BinaryPullInput{GitRef: "-x"}, mvm.ErrInvalid},
		{BinaryPullInput{GitRef: "v1", SkipChecksum: true}, mvm.ErrInvalid},
	} {
		if _, err := m.Binary.Pull(t.Context(), tt.in); !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" {
			t.Errorf("%+v: %v (hint %q), want kind %q", tt.in, err, mvm.HintOf(err), tt.kind)
		}
	}
	if got := have(t, m); got != "" {
		t.Errorf("there is %s", got)
	}
	items, err := m.Binary.Pull(t.Context(), BinaryPullInput{Version: "1.3.0", SkipChecksum: true})
	if err != nil || items[0].Verification != mvm.VerifiedNot {
		t.Fatalf("unchecked: %+v, %v", items, err)
	}
	b, err := m.Binary.Get(t.Context(), BinaryInput{[]string{"firecracker:1.3.0"}})
	if err != nil || b[0].Verification != mvm.VerifiedNot || b[0].Digest == "" || !strings.HasSuffix(b[0].Source, "-x86_64.tgz") {
		t.Errorf("the store has %+v, %v", b, err)
	}
}

func TestKernelPullIsRefused(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	for _, in := range []KernelPullInput{
		{KernelType: "windows"}, {KernelType: "debian", Jobs: 2}, {KernelType: "firecracker", Features: []string{"kvm"}}, {KernelType: "debian", SkipChecksum: true},
		{KernelType: "official", Features: []string{"kvn"}}, {KernelType: "official", Jobs: -1}, {KernelType: "official", Checksum: "x"}, {KernelType: "firecracker", Checksum: "x"},
	} {
		if _, err := m.Kernel.Pull(t.Context(), in); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("%+v: %v (hint %q)", in, err, mvm.HintOf(err))
		}
	}
	if _, err := os.Stat(m.core.paths.db()); !errors.Is(err, os.ErrNotExist) {
		t.Error("something was begun")
	}
	if _, err := m.Kernel.ListRemote(t.Context(), KernelRemoteInput{Type: "debian"}); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("a type that is not listed: %v", err)
	}
}
