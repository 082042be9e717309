package e2e

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/image/imagetest"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// world is an outside world with a server that tells every caller the address
// that it sees.
func (m *machine) world() string {
	m.t.Helper()
	out := nettest.Outside(m.t, m.ns)
	l, err := out.Listen("tcp", net.JoinHostPort(nettest.OutsideAddr.String(), "7"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			addr, _ := netip.ParseAddrPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, addr.Addr().String()+"\n")
			_ = c.Close()
		}
	}()
	return nettest.OutsideAddr.String() + " 7"
}

// TestFirstBoot is the main job, end to end: a VM from an image and a kernel that
// answers, is what was asked for, keeps its disk, and leaves nothing.
func TestFirstBoot(t *testing.T) {
	m := newMachine(t)
	server := m.world()
	m.must("init", "--non-interactive", "--skip-host")
	before := m.listing()

	m.must("vm", "create", "web", "--image", "tiny", "--disk-size", "256M", "--mem", "256", "--vcpu", "2", "--wait")
	web := m.vm("web")
	if web.Status != "running" || web.PID == 0 {
		t.Errorf("web is %+v after create --wait", web)
	}
	if got := m.ssh("web", "hostname"); got != "web" {
		t.Errorf("hostname is %q", got)
	}
	if got := m.ssh("web", "ip -4 -o addr show eth0"); !strings.Contains(got, web.IPv4+"/24") {
		t.Errorf("the guest's address is %q, its lease %s", got, web.IPv4)
	}
	if got := m.ssh("web", "uname -r"); got != m.kernelVersion() {
		t.Errorf("the guest runs kernel %q, asked for was %q", got, m.kernelVersion())
	}
	if got := m.ssh("web", "cat /etc/resolv.conf"); !strings.Contains(got, "nameserver 172.27.0.1") {
		t.Errorf("resolv.conf is %q", got)
	}
	if got := m.ssh("web", "nproc"); got != "2" {
		t.Errorf("the guest has %s vCPUs", got)
	}
	if got := m.ssh("web", "df -m / | tail -1 | awk '{print $2}'"); len(got) != 3 || got < "200" {
		t.Errorf("the root file system has %s MiB of a disk of 256", got)
	}
	if got := m.ssh("web", "nc "+server+" </dev/null"); got != nettest.HostAddr.String() {
		t.Errorf("a server outside sees the guest as %q, not as the host %s", got, nettest.HostAddr)
	}
	if r := m.run("ssh", "web", "-c", "exit 42"); r.code != 42 {
		t.Errorf("ssh -c 'exit 42' exits %d", r.code)
	}

	m.ssh("web", "echo kept > /root/note && sync")
	hostKey := m.ssh("web", "cat /etc/machine-id")
	m.must("vm", "stop", "web")
	if got := m.vm("web").Status; got != "stopped" {
		t.Errorf("web is %s after stop", got)
	}
	m.must("vm", "start", "web", "--wait")
	if got := m.ssh("web", "cat /root/note"); got != "kept" {
		t.Errorf("after stop and start the note reads %q", got)
	}
	if got := m.ssh("web", "cat /etc/machine-id"); got != hostKey {
		t.Errorf("the machine-id changed from %q to %q", hostKey, got)
	}
	m.must("vm", "rm", "--force", "web")
	m.sameListing(before)
}

func (m *machine) kernelVersion() string {
	m.t.Helper()
	var kernels []struct {
		Version   string `json:"version"`
		IsDefault bool   `json:"is_default"`
	}
	if err := json.Unmarshal([]byte(m.must("kernel", "ls", "--json")), &kernels); err != nil {
		m.t.Fatal(err)
	}
	for _, k := range kernels {
		if k.IsDefault {
			return k.Version
		}
	}
	m.t.Fatal("there is no default kernel")
	return ""
}

// TestTwoVMsReachEachOther boots two VMs at once on one network.
func TestTwoVMsReachEachOther(t *testing.T) {
	m := newMachine(t)
	server := m.world()
	m.must("vm", "create", "peer", "--image", "tiny", "--mem", "256", "--count", "2", "--egress", nettest.OutsideAddr.String()+",a.example", "--wait")
	a, b := m.vm("peer-1"), m.vm("peer-2")
	if a.IPv4 == b.IPv4 || a.MAC == b.MAC {
		t.Fatalf("the VMs share an address: %+v %+v", a, b)
	}
	for from, to := range map[string]string{"peer-1": b.IPv4, "peer-2": a.IPv4} {
		if got := m.ssh(from, "ping -c 1 -W 20 "+to); !strings.Contains(got, "1 packets received") {
			t.Errorf("%s does not reach %s: %s", from, to, got)
		}
	}
	if got := m.ssh("peer-1", "cat /etc/machine-id"); got == m.ssh("peer-2", "cat /etc/machine-id") {
		t.Errorf("both VMs have the machine-id %s", got)
	}
	m.namesAndEgress("peer-1", b, server)
	m.must("vm", "stop", "--force", "peer-1")
	m.must("vm", "start", "peer-1", "--wait")
	m.namesAndEgress("peer-1", b, server)
}

// namesAndEgress has a VM find another one by name, reach what is listed for it, and
// nothing else.
func (m *machine) namesAndEgress(name string, other vm, server string) {
	m.t.Helper()
	for _, asked := range []string{"peer-2", "peer-2.mvm"} {
		if got := m.ssh(name, "nslookup "+asked); !strings.Contains(got, other.IPv4) {
			m.t.Errorf("%s is %s, not %s", asked, got, other.IPv4)
		}
	}
	if r := m.run("ssh", name, "-c", "nslookup b.example"); !strings.Contains(r.stdout+r.stderr, "REFUSED") {
		m.t.Errorf("a name that is not listed: %s%s", r.stdout, r.stderr)
	}
	if got := m.ssh(name, "nc "+server+" </dev/null"); got != nettest.HostAddr.String() {
		m.t.Errorf("what is listed is answered %q", got)
	}
	if r := m.run("ssh", name, "-c", "nc -w 2 203.0.113.9 443 </dev/null"); r.code == 0 {
		m.t.Errorf("what is not listed is answered %q", r.stdout)
	}
	var denials struct {
		Packets int
		To      []struct {
			Address, Protocol string
			Port, Packets     int
		}
	}
	if err := json.Unmarshal([]byte(m.must("network", "denials", name, "--json")), &denials); err != nil {
		m.t.Fatal(err)
	}
	if len(denials.To) != 1 || denials.To[0].Address != "203.0.113.9" || denials.To[0].Protocol != "tcp" || denials.To[0].Port != 443 || denials.Packets < 1 {
		m.t.Errorf("denied was %+v", denials)
	}
}

// TestHostRebootIsMended takes the bridge and the VMM away, as a reboot does.
func TestHostRebootIsMended(t *testing.T) {
	m := newMachine(t)
	m.must("vm", "create", "web", "--image", "tiny", "--mem", "256", "--wait")
	kill9(t, m.vm("web").PID)
	m.until("the VMM is gone", func() bool { return m.vm("web").Status != "running" })
	if got := m.vm("web").Status; got != "crashed" {
		t.Errorf("web is %s after its VMM was killed", got)
	}
	m.ns.Run("ip", "link", "del", "mvm-default")
	m.must("vm", "start", "web", "--wait")
	if got := m.ssh("web", "hostname"); got != "web" {
		t.Errorf("hostname is %q", got)
	}
}

// TestDebianImage boots the systemd image that users get by default, as if it had been
// cut out of a disk with more partitions, as distributions' own are.
func TestDebianImage(t *testing.T) {
	m := newMachine(t, debian)
	m.must("image", "import", "cut", m.cutOut(debian), "--skip-optimization")
	m.must("vm", "create", "deb", "--image", "cut", "--mem", "512", "--disk-size", "2G", "--wait=ssh")
	if got := m.ssh("deb", "systemctl is-active local-fs.target; systemctl list-units --failed --plain --no-legend; grep -c '^# mvm: ' /etc/fstab"); got != "active\n2" {
		t.Errorf("of its file systems it says %q", got)
	}
	if got := m.ssh("deb", ". /etc/os-release; echo $VERSION_CODENAME $(cat /proc/1/comm)"); got != "bookworm systemd" {
		t.Errorf("the guest is %q", got)
	}
	if got := m.ssh("deb", "hostname; cat /etc/hostname"); got != "deb\ndeb" {
		t.Errorf("hostname is %q", got)
	}
	if got := m.ssh("deb", "df -m --output=size / | tail -1"); strings.TrimSpace(got) < "1800" {
		t.Errorf("the root file system has %s MiB of a disk of 2048", got)
	}
	if got := m.ssh("deb", "grep ^root: /etc/shadow | cut -d: -f2"); got != "*" && !strings.HasPrefix(got, "!") {
		t.Errorf("root has the password %q", got)
	}
	m.must("vm", "stop", "deb")
}

// imageFile is the file of an image.
func (m *machine) imageFile(ref string) string {
	m.t.Helper()
	var seen struct {
		Storage struct {
			Path string `json:"path"`
		} `json:"storage"`
	}
	if err := json.Unmarshal([]byte(m.must("image", "inspect", ref, "--json")), &seen); err != nil || seen.Storage.Path == "" {
		m.t.Fatal(seen, err)
	}
	return seen.Storage.Path
}

// cutOut copies the disk of an image, and has it name disks that are not there.
func (m *machine) cutOut(ref string) string {
	m.t.Helper()
	mk := imagetest.New(m.t)
	out := mk.Path("cut")
	mk.Run("", "cp", "--sparse=always", m.imageFile(ref), out)
	mk.Run("PARTUUID=1-1 / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\nLABEL=BOOT /boot ext4 defaults 0 2\nLABEL=UEFI /boot/efi vfat umask=0077 0 1\n", "tee", mk.Path("fstab"))
	mk.Run("rm /etc/fstab\nwrite fstab /etc/fstab\n", "debugfs", "-w", "-f", "-", out)
	return out
}

// TestHostileTree has a guest lay traps in its own root for what is written into
// it at boot: links that lead out of the root, and to files that must not change.
// What is written stays in the root, and the host's files are as they were.
func TestHostileTree(t *testing.T) {
	m := newMachine(t)
	m.must("vm", "create", "trap", "--image", "tiny", "--mem", "256", "--wait")
	victims := []string{"/etc/passwd", "/etc/hostname", "/etc/hosts", "/etc/machine-id"}
	before := map[string]string{}
	for _, f := range victims {
		data, err := os.ReadFile(f)
		if err == nil {
			before[f] = string(data)
		}
	}
	passwd := m.ssh("trap", "cat /etc/passwd")
	m.ssh("trap", `rm -f /var/lib/mvm/instance-id /etc/hostname /etc/hosts &&
		ln -s /etc/passwd /etc/hostname && ln -s ../../../../../etc/passwd /etc/hosts &&
		rm -rf /root/.ssh && mkdir /tmp/elsewhere && rm -f /etc/machine-id && mkfifo /etc/machine-id && sync`)
	m.must("vm", "stop", "trap")
	m.must("vm", "start", "trap", "--wait")
	if got := m.ssh("trap", "cat /etc/passwd"); got != passwd {
		t.Errorf("the guest's /etc/passwd was written through a link:\n%s", got)
	}
	if got := m.ssh("trap", "cat /etc/hostname; if test -L /etc/hostname; then echo link; fi"); got != "trap" {
		t.Errorf("/etc/hostname is %q", got)
	}
	for f, was := range before {
		if data, err := os.ReadFile(f); err != nil || string(data) != was {
			t.Errorf("the host's %s changed (%v)", f, err)
		}
	}
}
