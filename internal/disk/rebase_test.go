package disk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

func TestCloneDiskFindsItsBase(t *testing.T) {
	testenv.Require(t, "qemu-img")
	root := t.TempDir()
	base := filepath.Join(root, "images", "base.raw")
	must(t, os.MkdirAll(filepath.Dir(base), 0o700))
	must(t, os.WriteFile(base, bytes.Repeat([]byte("base"), 1<<18), 0o600))
	overlay := filepath.Join(root, "vms", "a", "disk.qcow2")
	must(t, os.MkdirAll(filepath.Dir(overlay), 0o700))
	must(t, disk.Overlay(t.Context(), base, disk.Raw, overlay, 4<<20))
	for name, dir := range map[string]string{
		"beside":  filepath.Join(root, "vms", "b"),
		"deeper":  filepath.Join(root, strings.Repeat("deep", 10), "x", "y", "z"),
		"nearer":  root,
		"outside": t.TempDir(),
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.MkdirAll(dir, 0o700))
			clone := filepath.Join(dir, "clone.qcow2")
			must(t, disk.CloneDisk(t.Context(), overlay, disk.Qcow2, clone))
			if got, err := disk.BackingFile(clone); got != base || err != nil {
				t.Errorf("BackingFile = %q, %v, want %q", got, err, base)
			}
			// qemu-img opens both and reads through.
			if _, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: "qemu-img", Args: []string{"check", clone}}); err != nil {
				t.Errorf("qemu-img check: %v", err)
			}
			raw := clone + ".raw"
			if _, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: "qemu-img", Args: []string{"convert", "-O", "raw", clone, raw}}); err != nil {
				t.Fatalf("qemu-img convert: %v", err)
			}
			data, err := os.ReadFile(raw)
			if err != nil || !bytes.HasPrefix(data, []byte("basebase")) {
				t.Errorf("the clone does not show its base: %v", err)
			}
		})
	}
}

func TestBackingFileRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"empty": nil, "raw": bytes.Repeat([]byte{1}, 4096), "short": []byte("QFI\xfb\x00\x00\x00\x03"),
		"long name": append([]byte("QFI\xfb\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x70\x00\x01\x00\x00\x00\x00\x00\x10"), make([]byte, 200)...),
		"far away":  append([]byte("QFI\xfb\x00\x00\x00\x03\x00\x00\x00\xff\x00\x00\x00\x70\x00\x00\x00\x08\x00\x00\x00\x10"), make([]byte, 200)...),
	} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, data, 0o600))
		if got, err := disk.BackingFile(path); !errors.Is(err, mvm.ErrBroken) || got != "" {
			t.Errorf("%s: BackingFile = %q, %v, want ErrBroken", name, got, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
