package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// TestDebian really pulls the distribution's cloud kernel.
func TestDebian(t *testing.T) {
	testenv.Require(t, "root", "apt")
	if testing.Short() {
		t.Skip("fetches 26 MB")
	}
	dir := t.TempDir()
	o := DebianOptions{Runner: &run.Host{}, WorkDir: filepath.Join(dir, "debs"), DestDir: filepath.Join(dir, "kernels"),
		Progress: func(e mvm.ProgressEvent) { t.Logf("%s: %s", e.Phase, e.Message) }}
	// What a killed pull leaves does not count, and goes.
	if err := os.MkdirAll(filepath.Join(o.DestDir, ".pull-killed", "modules"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := Debian(t.Context(), o)
	if err != nil {
		t.Fatalf("%v (%s)", err, mvm.HintOf(err))
	}
	info, err := Inspect(p.Vmlinux)
	if err != nil {
		t.Fatal(err)
	}
	if info.Version != p.Version || info.Arch != p.Arch || p.Arch == X86_64 && (info.Format != ELF || !info.PVH) {
		t.Errorf("the kernel is %+v, the package %+v", info, p)
	}
	if got, _ := filepath.Glob(filepath.Join(o.DestDir, ".pull-*")); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	checkBootModules(t, p)

	again, err := Debian(t.Context(), o)
	p.Reused = true
	if d := cmp.Diff(p, again); err != nil || d != "" {
		t.Errorf("second pull: %v\n%s", err, d)
	}
	// A directory without its marker is not complete.
	if err := os.Remove(filepath.Join(p.Dir, marker)); err != nil {
		t.Fatal(err)
	}
	o.Version = p.Version
	if again, err = Debian(t.Context(), o); err != nil || again.Reused {
		t.Errorf("pull over an incomplete kernel: %+v, %v", again, err)
	}
	o.Version = "6.1 --help"
	if _, err = Debian(t.Context(), o); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("a bad version: %v", err)
	}
}

// checkBootModules checks that each module comes after what it depends on, and
// what a guest's initramfs grows by.
func checkBootModules(t *testing.T, p Pulled) {
	t.Helper()
	builtin := builtinModules(p.ModulesDir)
	for fsType, limit := range map[string]int64{"ext4": 4 << 20, "xfs": 12 << 20, "btrfs": 12 << 20} {
		paths, err := BootModules(p.ModulesDir, fsType)
		if err != nil {
			t.Fatal(err)
		}
		seen := slices.Clone(builtin)
		var size int64
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			m, err := ParseModule(data)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range m.Depends {
				if !slices.Contains(seen, d) {
					t.Errorf("%s: %s comes before %s", fsType, m.Name, d)
				}
			}
			seen, size = append(seen, m.Name), size+int64(len(data))
		}
		for _, name := range []string{"virtio_blk", "virtio_net", "virtio_console", "vmw_vsock_virtio_transport", fsType} {
			if !slices.Contains(seen, name) {
				t.Errorf("%s: no %s", fsType, name)
			}
		}
		if size > limit {
			t.Errorf("%s: the modules have %d bytes, more than %d", fsType, size, limit)
		}
	}
}

func TestWanted(t *testing.T) {
	for name, want := range map[string]string{
		"boot/vmlinuz-6.1.0-9-cloud-amd64":                "vmlinuz",
		"boot/config-6.1.0-9-cloud-amd64":                 "config",
		"boot/System.map-6.1":                             "",
		"lib/modules/6.1/kernel/fs/xfs/xfs.ko":            "modules/6.1/kernel/fs/xfs/xfs.ko",
		"usr/lib/modules/6.12/kernel/fs/xfs/xfs.ko.xz":    "modules/6.12/kernel/fs/xfs/xfs.ko.xz",
		"lib/modules/6.1/modules.builtin":                 "modules/6.1/modules.builtin",
		"lib/modules/6.1/build":                           "",
		"usr/share/doc/linux-image-6.1/changelog.gz":      "",
		"usr/lib/linux-image-6.1/arch/x86/boot/vmlinuz-x": "",
	} {
		if got := wanted(name); got != want {
			t.Errorf("wanted(%s) = %q, want %q", name, got, want)
		}
	}
}

func TestMetaPackages(t *testing.T) {
	for _, c := range []struct{ release, want string }{
		{"ID=debian\nVERSION_ID=\"12\"\n", "linux-image-cloud-amd64"},
		{"NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n", "linux-image-virtual"},
		{"ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "linux-image-virtual"},
		{"ID=raspbian\nID_LIKE=debian\n", "linux-image-cloud-amd64"},
		{"ID=other\n", "linux-image-cloud-amd64"},
	} {
		path := filepath.Join(t.TempDir(), "os-release")
		if err := os.WriteFile(path, []byte(c.release), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := metaPackages(osRelease(path), "amd64"); got[0] != c.want {
			t.Errorf("%q: %v, want %s first", c.release, got, c.want)
		}
	}
}
