package lab

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/testenv"
)

// TestVolumes gives volumes to guests of the real Firecracker, at boot and while
// they run. They are made outside: the lab has no mkfs.
func TestVolumes(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		volumesInside(t)
		return
	}
	testenv.Require(t, "root", "qemu", "apt", "e2fsprogs", "firecracker", "qemu-img", "qemu-disks")
	l := newLab(t)
	mvm := l.binary(t)
	test, disk := filepath.Join(l.dir, "lab.test"), filepath.Join(l.dir, "disk")
	compile(l.ctx, t, test, "test/lab")
	l.cacheDisk(t, mvm, disk,
		[]string{"volume", "create", "data", "16M", "--mkfs", "ext4"}, []string{"volume", "create", "hot", "16M", "--mkfs", "ext4"},
		[]string{"volume", "create", "more", "16M", "--mkfs", "ext4"},
		[]string{"volume", "create", "fixed", "16M", "--mkfs", "ext4", "--read-only"}, []string{"volume", "create", "cow", "16M", "--mkfs", "ext4", "--format", "qcow2"},
		[]string{"volume", "create", "still", "16M", "--mkfs", "ext4", "--format", "qcow2", "--read-only"})
	files := map[string]string{"/bin/mvm": mvm, "/lab/test": test}
	l.diskServer(t, files)
	l.run(t, guest{
		modules: append([]string{"kvm_amd", "virtio_pci", "virtio_blk"}, netModules...),
		files:   files,
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
	server := "/bin/qemu-storage-daemon"
	if err := os.Rename(server, server+".away"); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := u.try("vm", "create", "fc", "--image", "tiny", "--volume", "cow"); code == 0 || !strings.Contains(stderr, `volume "cow" is qcow2, which firecracker gets from qemu-storage-daemon, and that is not installed`) {
		t.Errorf("a qcow2 volume: exit %d, %s", code, stderr)
	}
	if err := os.Rename(server+".away", server); err != nil {
		t.Fatal(err)
	}
	u.served()
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

// served gives a guest qcow2 volumes: it sees what is in them, and not their bytes.
func (u user) served() {
	u.t.Helper()
	refused := func(says string, args ...string) {
		u.t.Helper()
		if code, _, stderr := u.try(args...); code == 0 || !strings.Contains(stderr, says) {
			u.t.Errorf("%q: exit %d, %s", args, code, stderr)
		}
	}
	u.must("vm", "create", "q", "--image", "tiny", "--mem", "256", "--wait", "--volume", "cow:/srv/cow", "--volume", "data:/srv/data", "--volume", "still:/srv/still")
	if got := u.mounted("q"); got != "/srv/cow ext4 rw\n/srv/data ext4 rw\n/srv/still ext4 ro" {
		u.t.Errorf("mounted are %q", got)
	}
	sum := u.agent("q", "sh", "-c", "dd if=/dev/urandom of=/srv/cow/x bs=64k count=64 2>/dev/null && sync && sha256sum </srv/cow/x")
	if code, _, _ := u.try("exec", "q", "--", "sh", "-c", "dd if=/dev/zero of=/dev/vdd bs=512 count=1 conv=fsync"); code == 0 {
		u.t.Error("a read-only volume was written to")
	}
	u.wantServers("q", 2)
	refused(`volume "cow" is qcow2, and firecracker takes no snapshot of a VM with such a volume`, "snapshot", "create", "q")
	refused("firecracker cannot pause a VM with a qcow2 disk", "vm", "pause", "q")
	if code, _, stderr := u.try("volume", "detach", "q", "still"); code != 0 || !strings.Contains(stderr, "q has it until it ends: a qcow2 volume is served to firecracker for as long as the VM runs") {
		u.t.Errorf("detach: exit %d, %s", code, stderr)
	}
	u.must("vm", "reboot", "q", "--wait")
	if got := u.mounted("q"); got != "/srv/cow ext4 rw\n/srv/data ext4 rw" {
		u.t.Errorf("after the restart there are mounted %q", got)
	}
	if got := u.agent("q", "sh", "-c", "sha256sum </srv/cow/x"); got != sum {
		u.t.Errorf("what was written is %s, and was %s", got, sum)
	}
	u.wantServers("q", 1)
	if code, _, stderr := u.try("volume", "attach", "q", "still:/srv/still"); code != 0 || !strings.Contains(stderr, "has it from its next start on: firecracker takes a qcow2 disk only when it starts") {
		u.t.Errorf("attach: exit %d, %s", code, stderr)
	}
	u.must("vm", "rm", "--force", "q")
	u.wantServers("q", 0)
	var volumes []struct{ Name, Path string }
	u.decode(&volumes, "volume", "ls", "--json")
	path := ""
	for _, v := range volumes {
		if v.Name == "cow" {
			path = filepath.Join(os.Getenv("MVM_CACHE_DIR"), v.Path)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(data), "QFI\xfb") || len(data) < 4<<20 {
		u.t.Errorf("the volume is no qcow2 with 4 MiB any more: %d bytes, %v", len(data), err)
	}
}

// wantServers sees how many disks are served to VMs, and that it is done as the user
// of the jail.
func (u user) wantServers(name string, want int) {
	u.t.Helper()
	ids, err := proc.FindByArg(supervisor.ServerToken(""))
	if err != nil || len(ids) != want {
		u.t.Errorf("%d disks are served, want %d: %v", len(ids), want, err)
	}
	for _, id := range ids {
		jail := u.inspect(name).Process.Jail
		uid := strings.Fields(u.status("/proc/" + strconv.Itoa(id.PID))["Uid"])
		if jail == nil || len(uid) == 0 || uid[0] != strconv.Itoa(jail.UID) {
			u.t.Errorf("a server is user %q's; the jail is %+v", uid, jail)
		}
	}
}

// mounted is what a guest has below /srv.
func (u user) mounted(name string) string {
	u.t.Helper()
	return u.agent(name, "sh", "-c", `grep ' /srv' /proc/mounts | cut -d ' ' -f 2-4 | sed 's/,.*//'`)
}
