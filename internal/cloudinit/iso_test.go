package cloudinit

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/google/go-cmp/cmp"
)

func TestISO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cloud-init.iso")
	docs := Documents{MetaData: []byte("instance-id: a\n"), UserDataName: []byte("#cloud-config\n{}\n"), VendorData: {}, NetworkConfig: []byte("version: 2\n")}
	if err := WriteISO(t.Context(), path, docs); err != nil {
		t.Fatal(err)
	}
	if err := CheckISO(path); err != nil {
		t.Error(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	st, _ := f.Stat()
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
	if diff := cmp.Diff(docs, got); diff != "" {
		t.Error(diff)
	}
	if data, _ := os.ReadFile(path); len(data)%sector != 0 {
		t.Errorf("%d bytes", len(data))
	}
}
