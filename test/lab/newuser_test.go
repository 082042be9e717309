package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// insideVariable is set in the lab guest, where TestNewUser is the user.
const insideVariable = "MVM_TEST_INSIDE_LAB"

// netModules are what networks need. Nothing loads modules on demand in the lab.
var netModules = []string{"tun", "bridge", "nf_tables", "nft_ct", "nft_chain_nat", "nft_masq", "nft_nat", "nft_meta_bridge"}

// TestNewUser does with the built binary and the real Firecracker what a new user
// does. Kernel and image are prepared outside, because the lab has no network.
func TestNewUser(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		newUser(t)
		return
	}
	testenv.Require(t, "root", "qemu", "apt", "e2fsprogs", "firecracker")
	l := newLab(t)
	mvm := l.binary(t)
	test, disk := filepath.Join(l.dir, "lab.test"), filepath.Join(l.dir, "disk")
	compile(l.ctx, t, test, "test/lab")
	l.cacheDisk(t, mvm, disk)
	l.run(t, guest{
		modules: append([]string{"kvm_amd", "virtio_pci", "virtio_blk"}, netModules...),
		files:   map[string]string{"/bin/mvm": mvm, "/lab/test": test},
		disk:    disk,
		script: "mkdir -p /var/lib/mvm && mount -t ext4 /dev/vda /var/lib/mvm && " +
			insideVariable + "=1 MVM_CACHE_DIR=/var/lib/mvm/cache MVM_CONFIG_DIR=/var/lib/mvm/config MVM_TEST_FIRECRACKER=/bin/firecracker " +
			"/lab/test -test.v -test.count=1 -test.run 'TestNewUser$' -test.timeout 28m",
	})
}

// binary returns the built mvm: the one that MVM_TEST_MVM names, or one made now.
func (l *lab) binary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("MVM_TEST_MVM"); path != "" {
		return path
	}
	path := filepath.Join(l.dir, "mvm")
	l.do(t, run.Cmd{Name: "go", Args: []string{"build", "-ldflags=-s -w", "-o", path, "github.com/mvmctl/mvm/cmd/mvm"}, Env: append(os.Environ(), "CGO_ENABLED=0")})
	return path
}

// cacheDisk makes an ext4 disk with a cache that has a kernel and the tiny image,
// and what more commands of mvm make.
func (l *lab) cacheDisk(t *testing.T, mvm, disk string, more ...[]string) {
	t.Helper()
	tree := filepath.Join(l.dir, "tree")
	cache := filepath.Join(tree, "cache")
	env := append(os.Environ(), "MVM_CACHE_DIR="+cache, "MVM_CONFIG_DIR="+filepath.Join(tree, "config"))
	l.do(t, run.Cmd{Name: mvm, Args: []string{"kernel", "pull", "debian"}, Env: env})
	l.do(t, run.Cmd{Name: mvm, Args: []string{"image", "build", "tiny"}, Env: env})
	for _, args := range more {
		l.do(t, run.Cmd{Name: mvm, Args: args, Env: env})
	}
	if err := os.RemoveAll(filepath.Join(cache, "downloads")); err != nil {
		t.Fatal(err)
	}
	l.do(t, run.Cmd{Name: "mke2fs", Args: []string{"-q", "-t", "ext4", "-d", tree, disk, "4G"}, Env: os.Environ()})
}

func (l *lab) do(t *testing.T, cmd run.Cmd) {
	t.Helper()
	if _, err := (&run.Host{}).Run(l.ctx, cmd); err != nil {
		t.Fatal(err)
	}
}
