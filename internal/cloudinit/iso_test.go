package cloudinit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

func TestISO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cloud-init.iso")
	if err := WriteISO(t.Context(), path, documents); err != nil {
		t.Fatal(err)
	}
	if err := CheckISO(path); err != nil {
		t.Error(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	iso, err := iso9660.Read(file.New(f, true), st.Size(), 0, sector)
	if err != nil {
		t.Fatal(err)
	}
	got := Documents{}
	entries, err := iso.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := iso.ReadFile(e.Name())
		if err != nil {
			t.Fatal(e.Name(), err)
		}
		got[e.Name()] = data
	}
	if diff := cmp.Diff(documents, got); diff != "" {
		t.Error(diff)
	}
	if st.Size()%sector != 0 || st.Mode().Perm() != 0o600 {
		t.Errorf("it has %d bytes, mode %v", st.Size(), st.Mode())
	}
}

func TestRefusedISO(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.iso")
	if err := WriteISO(t.Context(), good, documents); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, change func([]byte) []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, change(slices.Clone(data)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	label := func(s string) func([]byte) []byte {
		return func(b []byte) []byte {
			copy(b[systemArea+labelOffset:], s+strings.Repeat(" ", labelLength-len(s)))
			return b
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckISO(file("upper.iso", label("CIDATA"))); err != nil {
		t.Errorf("the label in capitals, as some programs write it: %v", err)
	}
	for path, c := range map[string]struct {
		kind mvm.Kind
		says string
	}{
		filepath.Join(dir, "none"):         {mvm.ErrNotFound, "is not there"},
		dir:                                {mvm.ErrInvalid, "no regular file"},
		fifo:                               {mvm.ErrInvalid, "no regular file"},
		file("label.iso", label("backup")): {mvm.ErrInvalid, `"backup"`},
		file("nolabel.iso", label("")):     {mvm.ErrInvalid, `label ""`},
		file("short.iso", func(b []byte) []byte { return b[:systemArea+100] }):       {mvm.ErrInvalid, "no ISO 9660 image"},
		file("other.iso", func(b []byte) []byte { b[systemArea+1] = 'X'; return b }): {mvm.ErrInvalid, "no ISO 9660 image"},
		file("empty.iso", func([]byte) []byte { return nil }):                        {mvm.ErrInvalid, "no ISO 9660 image"},
	} {
		if err := CheckISO(path); !errors.Is(err, c.kind) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, hint %q", filepath.Base(path), err, mvm.HintOf(err))
		}
	}
}

// An image that cannot be written leaves nothing behind.
func TestISOIsThereWhole(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WriteISO(ctx, filepath.Join(dir, "x.iso"), documents); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
