package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/testenv"
)

// TestVolumes gives volumes to guests of the real Firecracker, at boot and while
// they run. They are made outside: the lab has no mkfs.
func TestVolumes(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		volumesInside(t)
		return
	}
	testenv.Require(t, "root", "qemu", "apt", "e2fsprogs", "firecracker", "qemu-img")
	l := newLab(t)
	mvm := l.binary(t)
	test, disk := filepath.Join(l.dir, "lab.test"), filepath.Join(l.dir, "disk")
	compile(l.ctx, t, test, "test/lab")
	l.cacheDisk(t, mvm, disk,
		[]string{"volume", "create", "data", "16M", "--mkfs", "ext4"}, []string{"volume", "create", "hot", "16M", "--mkfs", "ext4"},
		[]string{"volume", "create", "more", "16M", "--mkfs", "ext4"},
		[]string{"volume", "create", "fixed", "16M", "--mkfs", "ext4", "--read-only"}, []string{"volume", "create", "cow", "16M", "--format", "qcow2"})
	l.run(t, guest{
		modules: append([]string{"kvm_amd", "virtio_pci", "virtio_blk"}, netModules...),
		files:   map[string]string{"/bin/mvm": mvm, "/lab/test": test},
		disk:    disk,
		script: "mkdir -p /var/lib/mvm && mount -t ext4 /dev/vda /var/lib/mvm && " +
			insideVariable + "=1 MVM_CACHE_DIR=/var/lib/mvm/cache MVM_CONFIG_DIR=/var/lib/mvm/config " +
			"/lab/test -test.v -test.count=1 -test.run 'TestVolumes$' -test.timeout 28m",
	})
}

// volumesInside is TestVolumes inside the lab.
func volumesInside(t *testing.T) {
	u := user{t}
	u.must("init", "--non-interactive", "--skip-host")
	u.must("config", "set", "settings.vm", "ready_timeout_sec", "320")
	if code, _, stderr := u.try("vm", "create", "fc", "--image", "tiny", "--volume", "cow"); code == 0 || !strings.Contains(stderr, `volume "cow" is qcow2, and firecracker takes raw volumes only`) {
		t.Errorf("a qcow2 volume: exit %d, %s", code, stderr)
	}
	u.must("vm", "create", "fc", "--image", "tiny", "--mem", "256", "--wait", "--volume", "data:/srv/data", "--volume", "fixed:/srv/fixed")
	if got := u.mounted("fc"); got != "/srv/data ext4 rw\n/srv/fixed ext4 ro" {
		t.Errorf("mounted are %q", got)
	}
	u.agent("fc", "sh", "-c", "echo kept >/srv/data/x")
	if code, _, _ := u.try("exec", "fc", "--", "sh", "-c", "dd if=/dev/zero of=/dev/vdc bs=512 count=1 conv=fsync"); code == 0 {
		t.Error("a read-only volume was written to")
	}
	plug := func(verb, volume, mount, says string) { // its agent has the guest look for the disk, and take it out
		t.Helper()
		if code, _, stderr := u.try("volume", verb, "fc", volume+mount); code != 0 || (says == "") != (stderr == "") || !strings.Contains(stderr, says) {
			u.showLogs()
			t.Fatalf("%s %s: exit %d, %s", verb, volume, code, stderr)
		}
	}
	plug("attach", "hot", ":/srv/hot", "")
	plug("attach", "more", ":/srv/more", "")
	u.agent("fc", "sh", "-c", "echo hot >>/srv/hot/x && echo more >/srv/more/x")
	plug("detach", "hot", "", "")
	plug("detach", "more", "", "")
	if got := u.agent("fc", "sh", "-c", "ls /sys/block | grep -c vd"); got != "3" {
		t.Errorf("the guest has %s disks", got)
	}
	plug("attach", "hot", ":/srv/hot", "fc runs on without it and has it from its next start on: firecracker plugs no disk into a VM that one was taken out of")
	if got := u.mounted("fc"); got != "/srv/data ext4 rw\n/srv/fixed ext4 ro" {
		t.Errorf("mounted are %q", got)
	}
	u.must("vm", "reboot", "fc", "--wait")
	if got := u.agent("fc", "cat", "/srv/data/x", "/srv/hot/x"); got != "kept\nhot" {
		t.Errorf("after the restart there is %q", got)
	}
	plug("attach", "more", ":/srv/more", "")
	if got := u.agent("fc", "cat", "/srv/more/x"); got != "more" {
		t.Errorf("plugged in after the restart, there is %q", got)
	}
	u.must("vm", "rm", "--force", "fc")
}

// mounted is what a guest has below /srv.
func (u user) mounted(name string) string {
	u.t.Helper()
	return u.agent(name, "sh", "-c", `grep ' /srv' /proc/mounts | cut -d ' ' -f 2-4 | sed 's/,.*//'`)
}
