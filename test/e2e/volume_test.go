package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

// TestVolumes gives real guests volumes: at creation and while they run, mounted and
// not, alone and shared.
func TestVolumes(t *testing.T) {
	m := newMachine(t)
	for _, args := range [][]string{
		{"data", "64M", "--mkfs", "ext4"}, {"cow", "1G", "--format", "qcow2", "--mkfs", "ext4"}, {"models", "32M", "--mkfs", "ext4", "--shareable"},
		{"fixed", "8M", "--read-only"}, {"plain", "8M"},
	} {
		m.must(append([]string{"volume", "create"}, args...)...)
	}
	m.must("vm", "create", "web", "--image", "tiny", "--mem", "192", "--wait",
		"--volume", "data:/srv/data", "--volume", "cow:/srv/deep/cow", "-v", "models:ro:/srv/models", "-v", "fixed")
	t.Run("at boot", func(t *testing.T) { m.of(t).volumesAtBoot() })
	t.Run("shared", func(t *testing.T) { m.of(t).volumesShared() })
	t.Run("hot", func(t *testing.T) { m.of(t).volumesHot() })
	t.Run("busy", func(t *testing.T) { m.of(t).volumeBusy() })
	t.Run("killed", func(t *testing.T) { m.of(t).attachKilled() })
	t.Run("power cut", func(t *testing.T) { m.of(t).volumesAfterPowerCut() })
	m.must("vm", "rm", "--force", "web")
	for name, v := range m.volumes() {
		if v.Status != mvm.VolumeAvailable || v.VMID != nil {
			t.Errorf("volume %s is %s after its VM has gone", name, v.Status)
		}
	}
}

// in runs a line in a guest's shell.
func (m *machine) in(vm, line string) string {
	m.t.Helper()
	return m.must("exec", vm, "--", "sh", "-c", line)
}

func (m *machine) volumes() map[string]*mvm.VolumeItem {
	m.t.Helper()
	var list []*mvm.VolumeItem
	if err := json.Unmarshal([]byte(m.must("volume", "ls", "--json")), &list); err != nil {
		m.t.Fatal(err)
	}
	byName := map[string]*mvm.VolumeItem{}
	for _, v := range list {
		byName[v.Name] = v
	}
	return byName
}

// device is where a guest has a volume, "" when it has not.
func (m *machine) device(vm, volume string) string {
	m.t.Helper()
	id := m.volumes()[volume].ID
	return strings.TrimSpace(m.in(vm, `for d in /sys/block/vd*; do [ "$(cat $d/serial)" = vol-`+id+` ] && echo /dev/${d##*/}; done; true`))
}

func (m *machine) mounted(vm string) string {
	m.t.Helper()
	return m.in(vm, `grep ' /srv' /proc/mounts | cut -d ' ' -f 2-4 | sed 's/,.*//'`)
}

// volumesAtBoot: they are there in order, mounted before the init has started, and
// what is written is there after a restart. Read-only ones cannot be written to.
func (m *machine) volumesAtBoot() {
	t := m.t
	for i, name := range []string{"data", "cow", "models", "fixed"} {
		if got, want := m.device("web", name), "/dev/vd"+string(rune('b'+i)); got != want {
			t.Errorf("%s is %q, want %s", name, got, want)
		}
	}
	want := "/srv/data ext4 rw\n/srv/deep/cow ext4 rw\n/srv/models ext4 ro\n"
	if got := m.mounted("web"); got != want {
		t.Errorf("mounted are\n%swant\n%s", got, want)
	}
	m.in("web", "echo one >/srv/data/x && echo two >/srv/deep/cow/x")
	for _, line := range []string{"echo no >/srv/models/x", "dd if=/dev/zero of=" + m.device("web", "fixed") + " bs=512 count=1 conv=fsync", "mount -o remount,rw /srv/models && echo no >/srv/models/x"} {
		if r := m.run("exec", "web", "--", "sh", "-c", line); r.code == 0 {
			t.Errorf("%q worked on a read-only volume", line)
		}
	}
	m.must("vm", "stop", "web")
	m.must("volume", "resize", "data", "96M")
	m.must("volume", "resize", "cow", "2G")
	m.must("vm", "start", "web", "--wait")
	if got := m.in("web", "cat /srv/data/x /srv/deep/cow/x"); got != "one\ntwo\n" {
		t.Errorf("after the restart there is %q", got)
	}
	size := func(dir string) string { return m.in("web", "df -m "+dir+" | tail -1 | awk '{print $2}'") }
	if a, b := size("/srv/data"), size("/srv/deep/cow"); len(a) < 3 || a < "8" || len(b) != 5 {
		t.Errorf("the file systems were not grown: %s and %s MiB", a, b)
	}
	m.refused([]string{"has it and is running", "mvm vm stop web"}, "volume", "resize", "data", "128M")
	m.refused([]string{"attached to", "--force"}, "volume", "rm", "data")
}

// volumesShared: several VMs read one volume; nobody writes to it meanwhile.
func (m *machine) volumesShared() {
	t := m.t
	m.refused([]string{`attached to VM "web"`, "--shareable"}, "vm", "create", "two", "--image", "tiny", "--volume", "data")
	m.refused([]string{`VM "web" has it already`, "models:ro"}, "vm", "create", "two", "--image", "tiny", "--volume", "models")
	m.must("vm", "create", "two", "--image", "tiny", "--mem", "192", "--wait", "--volume", "models:/srv/m:ro")
	if got := m.mounted("two"); got != "/srv/m ext4 ro\n" {
		t.Errorf("mounted in the second VM is %q", got)
	}
	m.must("vm", "rm", "--force", "two")
	if got := m.mounted("web"); !strings.Contains(got, "/srv/models ext4 ro\n") {
		t.Errorf("the first VM has lost it: %q", got)
	}
}

// volumesHot: a running guest gets a volume and gives it back.
func (m *machine) volumesHot() {
	t := m.t
	m.must("volume", "create", "hot", "16M", "--mkfs", "ext4")
	for range 2 {
		if r := m.run("volume", "attach", "web", "hot:/srv/hot"); r.code != 0 || r.stdout != "hot\n" || r.stderr != "" {
			t.Fatalf("attach: %+v", r)
		}
		m.in("web", "echo hot >>/srv/hot/x")
		if r := m.run("volume", "detach", "web", "hot"); r.code != 0 || r.stderr != "" {
			t.Fatalf("detach: %+v", r)
		}
		if d := m.device("web", "hot"); d != "" || strings.Contains(m.mounted("web"), "hot") {
			t.Errorf("after detaching the guest has it still, as %q", d)
		}
	}
	var res struct {
		Live   bool
		Device string
	}
	out := m.must("volume", "attach", "web", "hot", "--ro", "--json")
	if err := json.Unmarshal([]byte(out), &res); err != nil || !res.Live || res.Device == "" || res.Device != m.device("web", "hot") {
		t.Errorf("%v %s", err, out)
	}
	if got := m.in("web", "mkdir -p /mnt/h && mount -o ro "+res.Device+" /mnt/h && cat /mnt/h/x"); got != "hot\nhot\n" {
		t.Errorf("on it is %q", got)
	}
	if r := m.run("exec", "web", "--", "dd", "if=/dev/zero", "of="+res.Device, "bs=512", "count=1", "conv=fsync"); r.code == 0 {
		t.Error("a volume attached read-only was written to")
	}
	m.must("volume", "detach", "web", "hot") // also what the guest mounted by itself
	m.must("volume", "rm", "hot")
	m.refused([]string{"attached, but not mounted", "--mkfs"}, "volume", "attach", "web", "plain:/srv/plain")
	m.must("volume", "detach", "web", "plain")
}

// volumeBusy: what a program in the guest has open stays.
func (m *machine) volumeBusy() {
	t := m.t
	m.in("web", "sleep 1000 3>/srv/data/open & echo $! >/tmp/pid")
	m.refused([]string{"the guest does not release it", "/srv/data", "busy", "stop the VM"}, "volume", "detach", "web", "data")
	if v := m.volumes()["data"]; v.Status != mvm.VolumeAttached {
		t.Errorf("it is %s", v.Status)
	}
	m.in("web", "echo still >/srv/data/y; kill $(cat /tmp/pid)")
	m.until("the volume is released", func() bool { return m.run("volume", "detach", "web", "data").code == 0 })
	m.must("volume", "attach", "web", "data:/srv/data")
	if got := m.in("web", "cat /srv/data/x /srv/data/y"); got != "one\nstill\n" {
		t.Errorf("there is %q", got)
	}
}

// attachKilled: killed at any step of attaching or detaching, the record says what
// the guest has.
func (m *machine) attachKilled() {
	t := m.t
	m.must("volume", "create", "torn", "8M")
	for _, c := range [][]string{{"attach", "plug:before"}, {"attach", "plug:after"}, {"attach", "commit:before"}, {"detach", "unplug:before"}, {"detach", "unplug:after"}, {"detach", "commit:before"}} {
		if c[0] == "detach" && m.volumes()["torn"].Status == mvm.VolumeAvailable {
			m.must("volume", "attach", "web", "torn")
		}
		m.env = []string{"MVM_FAULT=kill:vm." + c[0] + ":" + c[1]}
		if r := m.run("volume", c[0], "web", "torn"); r.code == 0 {
			t.Fatalf("the fault at %v did not fire", c)
		}
		m.env = nil
		want := c[0] == "detach" // as it was before
		if got := m.volumes()["torn"].Status == mvm.VolumeAttached; got != want {
			t.Errorf("%v: attached is %v", c, got)
		}
		m.until("guest and record agree", func() bool { return (m.device("web", "torn") != "") == want })
	}
	m.must("volume", "detach", "web", "torn")
	m.must("volume", "rm", "torn")
}

// volumesAfterPowerCut: a guest that is killed leaves file systems that were not
// unmounted; it mounts them again, and another reads them without writing.
func (m *machine) volumesAfterPowerCut() {
	t := m.t
	m.in("web", "echo kept >/srv/data/z; sync; dd if=/dev/zero of=/srv/data/lost bs=1024 count=64")
	m.must("vm", "stop", "--force", "web")
	m.must("volume", "detach", "web", "data")
	m.must("volume", "attach", "web", "data:ro:/srv/data")
	m.must("vm", "start", "web", "--wait")
	if got := m.in("web", "cat /srv/data/z"); got != "kept\n" || !strings.Contains(m.mounted("web"), "/srv/data ext4 ro") {
		t.Errorf("there is %q, mounted are\n%s", got, m.mounted("web"))
	}
}

// TestVolumeFileSystems mounts a volume of each file system in a guest whose kernel
// has it as a module.
func TestVolumeFileSystems(t *testing.T) {
	m := newMachine(t)
	args := []string{"vm", "create", "web", "--image", "tiny", "--mem", "256", "--wait"}
	var want []string
	for _, fs := range []string{"xfs", "btrfs"} {
		if _, err := exec.LookPath("/usr/sbin/mkfs." + fs); err != nil {
			t.Logf("without mkfs.%s", fs)
			continue
		}
		m.must("volume", "create", fs, "320M", "--sparse", "--mkfs", fs)
		args = append(args, "--volume", fs+":/srv/"+fs)
		want = append(want, "/srv/"+fs+" "+fs+" rw\n")
	}
	if want == nil {
		t.Skip("needs mkfs.xfs or mkfs.btrfs")
	}
	m.must(args...)
	if got := m.mounted("web"); got != strings.Join(want, "") {
		t.Errorf("mounted are\n%s", got)
	}
}
