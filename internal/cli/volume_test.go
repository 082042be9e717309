package cli

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/mvmctl/mvm/api"
)

// What cannot be had again is asked about on a terminal, and done on a yes only.
func TestVolumeCommandsAsk(t *testing.T) {
	t.Setenv("MVM_CACHE_DIR", t.TempDir())
	t.Setenv("MVM_CONFIG_DIR", t.TempDir())
	keyboard, tty := openPTY(t)
	do := func(typed string, args ...string) error {
		t.Helper()
		if _, err := keyboard.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		root := newRoot(ptyApp(tty))
		root.SetArgs(append([]string{"volume"}, args...))
		return root.ExecuteContext(t.Context())
	}
	m, err := api.Open(t.Context(), api.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	has := func(name string, size int64) {
		t.Helper()
		v, err := m.Volume.Get(t.Context(), api.VolumeInput{Identifiers: []string{name}})
		if err != nil || v.SizeBytes != size {
			t.Errorf("%+v, %v; want %d bytes", v, err, size)
		}
	}
	if err := do("", "create", "data", "4M", "--format", "qcow2"); err != nil {
		t.Fatal(err)
	}
	if err := do("n\n", "rm", "data"); !errors.Is(err, errDeclined) {
		t.Errorf("rm, no: %v", err)
	}
	if err := do("\n", "resize", "data", "2M"); !errors.Is(err, errDeclined) {
		t.Errorf("resize, nothing: %v", err)
	}
	has("data", 4<<20)
	if _, err := exec.LookPath("qemu-img"); err == nil {
		if err := do("y\n", "resize", "data", "2M"); err != nil {
			t.Error(err)
		}
		has("data", 2<<20)
		if err := do("", "resize", "data", "3M"); err != nil { // growing loses nothing
			t.Error(err)
		}
		if err := do("", "resize", "--force", "data", "1M"); err != nil {
			t.Error(err)
		}
		has("data", 1<<20)
	}
	if err := do("y\n", "rm", "data"); err != nil {
		t.Error(err)
	}
	if _, err := m.Volume.Get(t.Context(), api.VolumeInput{Identifiers: []string{"data"}}); err == nil {
		t.Error("it is there still")
	}
}
