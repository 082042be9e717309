package api

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/image/imagetest"
)

// importPhases are moments outside of the journal at which an import is killed.
var importPhases = []string{"reading", "checking", "dropping", "making the file system smaller", "compressing"}

func init() {
	deeds["import"] = func(ctx context.Context, m *Client) error {
		_, err := m.Image.Import(ctx, ImageImportInput{Name: "golden", SourcePath: "web"})
		return err
	}
	for _, phase := range importPhases {
		deeds["import, killed while "+phase] = func(ctx context.Context, m *Client) error {
			_, err := m.Image.Import(ctx, ImageImportInput{Name: "golden", SourcePath: "web"}, OnProgress(func(e mvm.ProgressEvent) {
				if strings.HasPrefix(e.Message, phase) {
					_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				}
			}))
			return err
		}
	}
}

// TestImportOfVMDiesAnywhere kills an import of a VM's disk at each step of its plan and
// in each phase behind it. The next command, whichever it is, finds the VM as it was, and
// leaves nothing of copy and image.
func TestImportOfVMDiesAnywhere(t *testing.T) {
	imagetest.Require(t)
	w := newHosted(t)
	w.must("create")
	w.must("stop")
	vms, err := w.open().VM.ListAll(t.Context())
	if err != nil || len(vms) != 1 {
		t.Fatal(vms, err)
	}
	mk := imagetest.New(t)
	content, err := os.ReadFile(mk.FS("ext4", mk.Tree("tree", 62)))
	if err := errors.Join(err, os.WriteFile(vms[0].RootfsPath, content, 0o600)); err != nil {
		t.Fatal(err)
	}
	seen := func() string {
		vms, err := w.open().VM.ListAll(t.Context()) // any command
		if err != nil || len(vms) != 1 {
			t.Fatal(vms, err)
		}
		var files []string
		err = filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !strings.Contains(path, "/ops/") && !strings.Contains(path, "mvmdb") {
				files = append(files, strings.TrimPrefix(path, w.dir))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(vms[0].Status) + "\n" + strings.Join(files, "\n")
	}
	if err := os.WriteFile(filepath.Join(w.dir, worldCache, "images", ".build.lock"), nil, 0o600); err != nil { // stays once it was made
		t.Fatal(err)
	}
	before := seen()
	faults := map[string]string{}
	for _, phase := range importPhases {
		faults["import, killed while "+phase] = ""
	}
	for _, point := range w.points("", "import", []string{"vm.update"}) {
		faults["kill:"+point] = "import"
	}
	if _, err := w.open().Image.Remove(t.Context(), ImageInput{[]string{"golden"}}, false); err != nil {
		t.Fatal(err)
	}
	for fault, deed := range faults {
		if deed == "" {
			fault, deed = "", fault
		}
		if err := w.run(fault, deed); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("%s %s: %v", fault, deed, err)
		}
		if after := seen(); after != before {
			t.Errorf("%s %s leaves\n%s\nof\n%s", fault, deed, after, before)
		}
	}
	t.Logf("%d faults", len(faults))
	w.must("import")
	if images, err := w.open().Image.ListAll(t.Context()); err != nil || len(images) != 2 {
		t.Errorf("%d images, %v", len(images), err)
	}
}

// TestWarmInMemory has a copy in a tmpfs, of which VMs are made, and which goes with the
// image or with the setting.
func TestWarmInMemory(t *testing.T) {
	imagetest.Require(t)
	w := newHosted(t) // whose VMs have raw disks
	m := w.open()
	i := imported(t, m, ImageImportInput{Name: "mine"})
	memory := func() int64 {
		got, err := m.Image.Inspect(t.Context(), ImageInput{[]string{"mine"}})
		if err != nil {
			t.Fatal(err)
		}
		return got.Storage.MemoryBytes
	}
	warm := func(in string) error {
		if _, err := m.Config.Set(t.Context(), "defaults.image", "warm_in", in); err != nil {
			t.Fatal(err)
		}
		_, err := m.Image.Warm(t.Context(), ImageInput{[]string{"mine"}}, false)
		return err
	}
	for _, step := range []struct {
		in   string
		kept bool
	}{{"disk", false}, {"tmpfs", true}, {"tmpfs", true}, {"disk", false}, {"tmpfs", true}} {
		err := warm(step.in)
		if errors.Is(err, mvm.ErrUnsupported) {
			t.Skip(err)
		}
		if err != nil || (memory() > 0) != step.kept {
			t.Errorf("%s: %d bytes in memory, %v", step.in, memory(), err)
		}
	}
	dir := m.core.paths.memory().Dir
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Remove(m.core.paths.abs(i.Path) + ".warm"); err != nil { // so that a copy is made
		t.Fatal(err)
	}
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Image: "mine", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil { // as a reboot does
		t.Fatal(err)
	}
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "two", Image: "mine", NoAgent: true}); err != nil || memory() != 0 {
		t.Errorf("without the copy: %v", err)
	}
	if err := warm("tmpfs"); err != nil || memory() == 0 {
		t.Fatal(err)
	}
	if _, err := m.VM.Remove(t.Context(), VMInput{Identifiers: []string{"web", "two"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Image.Remove(t.Context(), ImageInput{[]string{"mine"}}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("left is %s: %v", dir, err)
	}
}

func TestFitsMemory(t *testing.T) {
	if err := fitsMemory(4<<30, 8<<30); err != nil {
		t.Error(err)
	}
	refused(t, fitsMemory(4<<30+1, 8<<30), mvm.ErrUnavailable, "more than half of the 8192 MiB")
}
