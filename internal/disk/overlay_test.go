package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// qemuImg runs the reference implementation, or skips.
func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	testenv.Require(t, "qemu-img")
	res, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: "qemu-img", Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return res.Stdout
}

// content is a raw base of size bytes with data here and there.
func content(t *testing.T, path string, size int64) {
	sparse(t, path, size, 0, size/2&^4095, size-4096)
}

func TestOverlayAgainstQemuImg(t *testing.T) {
	for name, c := range map[string]struct {
		base, size int64
	}{
		"same size":         {64 << 20, 0},
		"larger":            {64 << 20, 10 << 30},
		"odd sectors":       {1<<20 + 512, 1<<20 + 1024},
		"one more L2 table": {1 << 20, 512<<20 + 512},
		"base of no sector": {1<<20 + 100, 0},
		"many L1 clusters":  {1 << 20, 20 << 40},
		"the largest":       {1 << 20, maxVirtual},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			base, dst := filepath.Join(dir, "base:img"), filepath.Join(dir, "vm", "disk")
			if err := os.Mkdir(filepath.Dir(dst), 0o700); err != nil {
				t.Fatal(err)
			}
			content(t, base, c.base)
			if err := Overlay(t.Context(), base, Raw, dst, c.size); err != nil {
				t.Fatal(err)
			}
			qemuImg(t, "check", "-q", dst)
			var info struct {
				VirtualSize int64  `json:"virtual-size"`
				Format      string `json:"format"`
				ClusterSize int64  `json:"cluster-size"`
				Backing     string `json:"backing-filename"`
				Full        string `json:"full-backing-filename"`
				BackingFmt  string `json:"backing-filename-format"`
			}
			if err := json.Unmarshal(qemuImg(t, "info", "--output=json", dst), &info); err != nil {
				t.Fatal(err)
			}
			want := max(c.size, (c.base+511)&^511)
			if info.VirtualSize != want || info.Format != "qcow2" || info.ClusterSize != clusterBytes || info.BackingFmt != "raw" || info.Backing != "../base:img" {
				t.Errorf("%+v", info)
			}
			if virtual, allocated, err := Sizes(dst); err != nil || virtual != want || allocated > 1<<20 {
				t.Errorf("sizes %d %d, %v", virtual, allocated, err)
			}
			if c.size > 1<<32 {
				return // the rest would write that much
			}
			flat := filepath.Join(dir, "flat")
			qemuImg(t, "convert", "-O", "raw", dst, flat)
			got, err := os.ReadFile(flat)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(base)
			if err != nil {
				t.Fatal(err)
			}
			if int64(len(got)) != want || !bytes.Equal(got[:len(b)], b) || len(bytes.Trim(got[len(b):], "\x00")) != 0 {
				t.Errorf("reading through the overlay gives something else (%d bytes)", len(got))
			}
		})
	}
}

func TestOverlayTakesWrites(t *testing.T) {
	dir := t.TempDir()
	base, first, second := filepath.Join(dir, "base"), filepath.Join(dir, "first"), filepath.Join(dir, "second")
	content(t, base, 8<<20)
	before, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Overlay(t.Context(), base, Raw, first, 1<<30), Overlay(t.Context(), first, Qcow2, second, 2<<30)); err != nil {
		t.Fatal(err)
	}
	testenv.Require(t, "qemu-img") // qemu-io is in the same package
	for _, c := range []string{"write -P 7 1M 64k", "write -P 9 900M 1M", "read -P 7 1M 64k", "read -P 9 900M 1M", "read -P 1 0 4k"} {
		if _, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: "qemu-io", Args: []string{"-f", "qcow2", "-c", c, second}}); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
	qemuImg(t, "check", "-q", second)
	after, err := os.ReadFile(base)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the base was written: %v", err)
	}
}

// The cache directory is moved as a whole, or is reached through a link.
func TestOverlayMoves(t *testing.T) {
	dir := t.TempDir()
	cache := filepath.Join(dir, "cache")
	for _, d := range []string{"cache/images", "cache/vms/1"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(cache, "vms", "1"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(cache, "images", "base")
	content(t, base, 1<<20)
	if err := Overlay(t.Context(), base, Raw, filepath.Join(dir, "link", "disk"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(cache, filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	flat := filepath.Join(dir, "flat")
	qemuImg(t, "convert", "-O", "raw", filepath.Join(dir, "moved/vms/1/disk"), flat)
	sameContent(t, filepath.Join(dir, "moved/images/base"), flat)
}

func TestOverlayRefuses(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	content(t, base, 1<<20)
	for name, c := range map[string]struct {
		base, format string
		size         int64
		want         error
	}{
		"smaller":         {base, Raw, 1<<20 - 512, mvm.ErrInvalid},
		"no sectors":      {base, Raw, 1<<20 + 1, mvm.ErrInvalid},
		"too large":       {base, Raw, maxVirtual + 512, mvm.ErrInvalid},
		"unknown format":  {base, "vhd", 0, mvm.ErrInvalid},
		"no base":         {filepath.Join(dir, "missing"), Raw, 0, mvm.ErrNotFound},
		"not qcow2 after": {base, Qcow2, 0, mvm.ErrUnsupported},
	} {
		err := Overlay(t.Context(), c.base, c.format, filepath.Join(dir, "dst"), c.size)
		if !errors.Is(err, c.want) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q), want %v", name, err, mvm.HintOf(err), c.want)
		}
	}
	if err := Overlay(t.Context(), base, Raw, base, 0); !errors.Is(err, mvm.ErrExists) {
		t.Errorf("over the base: %v", err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
}

func BenchmarkOverlay(b *testing.B) {
	dir := b.TempDir()
	base, dst := filepath.Join(dir, "base"), filepath.Join(dir, "dst")
	if err := errors.Join(os.WriteFile(base, nil, 0o600), os.Truncate(base, 1<<30)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := errors.Join(Overlay(b.Context(), base, Raw, dst, 10<<30), os.Remove(dst)); err != nil {
			b.Fatal(err)
		}
	}
}
