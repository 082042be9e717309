package api

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

// TestRootFileSystemIsMounted refuses a kernel that cannot mount a root before anything
// is made, and has a guest mount the subvolume that the image says.
func TestRootFileSystemIsMounted(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	image, k := w.stock(m)
	k.ModulesPath = "kernels/tiny/modules"
	builtin := filepath.Join(m.core.paths.abs(k.ModulesPath), "modules.builtin")
	if err := errors.Join(os.MkdirAll(filepath.Dir(builtin), 0o700), os.WriteFile(builtin, []byte("kernel/fs/xfs/xfs.ko\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	p := &vmPlan{c: m.core, image: image, kernel: k}
	for fsType, fine := range map[string]bool{"ext4": true, "xfs": true, "btrfs": false} {
		image.FSType = fsType
		err := p.checkAssets()
		if fine != (err == nil) || !fine && (!errors.Is(err, mvm.ErrUnsupported) || !strings.Contains(err.Error(), "btrfs") || !strings.Contains(mvm.HintOf(err), "kernel pull official")) {
			t.Errorf("%s: %v (hint %q)", fsType, err, mvm.HintOf(err))
		}
	}
	k.ModulesPath = "" // nothing is known of a kernel that does not tell
	if err := p.checkAssets(); err != nil {
		t.Error(err)
	}
	if got := rootFlags(image); got != "" {
		t.Error(got)
	}
	image.FSSubvolume = optional("root")
	if got := rootFlags(image); got != "subvol=root" {
		t.Error(got)
	}
}
