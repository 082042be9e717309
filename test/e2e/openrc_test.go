package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// openRC are the packages of OpenRC and of the libraries that the tiny image lacks.
var openRC = []string{"openrc", "librc1", "libeinfo1", "libselinux1", "libaudit1", "libpam0g", "libpcre2-8-0", "libcap-ng0"}

// TestOpenRC has OpenRC be a guest's init: the agent runs beside it, and has it end the
// machine.
func TestOpenRC(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	fetch := exec.Command("apt-get", append([]string{"download"}, openRC...)...)
	fetch.Dir = dir
	if out, err := fetch.CombinedOutput(); err != nil {
		t.Fatalf("fetch the packages: %v\n%s", err, out)
	}
	packages, err := filepath.Glob(dir + "/*.deb")
	if err != nil || len(packages) != len(openRC) {
		t.Fatalf("fetched %v, %v", packages, err)
	}
	for _, p := range packages {
		if out, err := exec.Command("dpkg-deb", "-x", p, dir+"/tree").CombinedOutput(); err != nil {
			t.Fatalf("unpack %s: %v\n%s", p, err, out)
		}
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	m.must("vm", "create", "o", "--image", "tiny", "--mem", "192", "--wait")
	m.must("cp", dir+"/tree", "o:/root/tree")
	m.must("exec", "-w", "/root/tree", "o", "--", "sh", "-ec", `for d in sbin bin etc lib usr/lib usr/share; do
			[ ! -d $d ] || { mkdir -p /$d; cp -a $d/. /$d/; }
		done
		ln -sf openrc-init /sbin/init
		printf '#!/sbin/openrc-run\nstart() { echo "$RC_SVCNAME" >/etc/started; }\n' >/etc/init.d/note
		chmod 755 /etc/init.d/note
		rc-update add note default`)
	m.must("vm", "stop", "o")
	m.must("vm", "start", "o", "--wait")
	if got := m.must("exec", "o", "--", "readlink", "/proc/1/exe"); got != "/usr/sbin/openrc-init\n" {
		t.Errorf("the init is %q", got)
	}
	m.until("OpenRC has started its service", func() bool { return m.run("exec", "o", "cat", "/etc/started").stdout == "note\n" })
	m.must("vm", "stop", "o")
	if v := m.vm("o"); v.Status != "stopped" {
		t.Errorf("it is %s", v.Status)
	}
	if got := m.must("logs", "o", "-n", "all"); !strings.Contains(got, `PID1: Received "poweroff"`) {
		t.Errorf("OpenRC was not asked to power off: %q", got)
	}
}
