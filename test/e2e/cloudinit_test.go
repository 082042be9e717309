package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const userData = `#cloud-config
users:
  - name: alice
    shell: /bin/bash
write_files:
  - path: /etc/note
    content: written by cloud-init
runcmd:
  - [sh, -c, "echo ran >>/etc/ran"]
`

// TestCloudInit has a real cloud-init run the same user data in every mode.
func TestCloudInit(t *testing.T) {
	m := newMachine(t, debian)
	m.must("init", "--non-interactive", "--skip-host")
	data := filepath.Join(t.TempDir(), "user-data")
	if err := os.WriteFile(data, []byte(userData), 0o600); err != nil {
		t.Fatal(err)
	}
	create := func(mode string, args ...string) {
		m.must(append([]string{"vm", "create", mode, "--image", debian, "--mem", "512", "--cloud-init-mode", mode}, args...)...)
	}
	create("off")
	for _, mode := range []string{"inject", "iso", "net"} {
		create(mode, "--cloudinit-config", data)
	}
	m.must("vm", "wait", "off", "inject", "iso", "net")
	packages := m.packages("off")
	// A VM is ready before its init has looked whether cloud-init is to run.
	m.until("cloud-init is disabled", func() bool { return m.run("exec", "off", "--", "test", "-e", "/run/cloud-init/disabled").code == 0 })
	if got := m.must("exec", "off", "--", "sh", "-c", "ls /var/lib/cloud/instances 2>/dev/null || true"); strings.Contains(got, m.vm("off").ID) {
		t.Errorf("mode off: cloud-init has left %q", got)
	}
	for _, mode := range []string{"inject", "iso", "net"} {
		t.Run(mode, func(t *testing.T) { m.of(t).cloudInit(mode, packages) })
	}
}

// packages are what a guest has installed, and from where it would install more.
func (m *machine) packages(vm string) string {
	m.t.Helper()
	return m.must("exec", vm, "--", "sh", "-c", "dpkg-query -W; cat /etc/apt/sources.list; ls /etc/apt/sources.list.d /var/lib/apt/lists")
}

// cloudInit looks for what cloud-init was to do in the VM of a mode, and for what it
// was to leave alone.
func (m *machine) cloudInit(mode, packages string) {
	t, v := m.t, m.vm(mode)
	for end := time.Now().Add(3 * patience); m.run("exec", mode, "--", "test", "-e", "/run/cloud-init/result.json").code != 0; time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatal("cloud-init does not end")
		}
	}
	if r := m.run("exec", mode, "--", "cloud-init", "status", "--wait"); r.code != 0 || !strings.Contains(r.stdout, "status: done") {
		t.Fatalf("cloud-init: %+v\n%s", r, m.run("exec", mode, "--", "tail", "-n", "40", "/var/log/cloud-init.log").stdout)
	}
	for _, c := range []struct{ what, script, want string }{
		{"the user", "id -un alice; grep ^alice: /etc/passwd | cut -d: -f7", "alice\n/bin/bash\n"},
		{"the file", "cat /etc/note", "written by cloud-init"},
		{"how often the command ran", "cat /etc/ran", "ran\n"},
		{"the host's name", "hostname; cat /etc/hostname", mode + "\n" + mode + "\n"},
		{"the address", "ip -4 -o addr show scope global | awk '{print $2, $4}'", "eth0 " + v.IPv4 + "/24\n"},
		{"the route", "ip -4 route show default | awk '{print $3}'", "172.27.0.1\n"},
		{"the name server", "grep -c '^nameserver 172.27.0.1' /etc/resolv.conf", "1\n"},
		{"passwords", `awk -F: '$2 !~ /^[!*]/ {print $1}' /etc/shadow`, ""},
		{"what a log holds of passwords", `grep -il 'chpasswd.*changed' /var/log/cloud-init-output.log`, ""},
	} {
		if r := m.run("exec", mode, "--", "sh", "-c", c.script); r.stdout != c.want {
			t.Errorf("%s: %q, want %q (%s)", c.what, r.stdout, c.want, r.stderr)
		}
	}
	if got := m.packages(mode); got != packages {
		t.Errorf("packages changed:\n%s\nwas:\n%s", got, packages)
	}
	if got := m.ssh(mode, "hostname"); got != mode { // the host key is the one that the host knows
		t.Errorf("by SSH it is %q", got)
	}
	if mode == "net" {
		m.until("the NoCloud server is gone", func() bool { return len(m.processes("mvm-nocloud-"+v.ID)) == 0 })
	}
	if iso, err := filepath.Glob(filepath.Join(m.cache, "vms", v.ID, "*.iso")); err != nil || len(iso) != 0 {
		t.Errorf("an ISO was left: %v, %v", iso, err)
	}
}

// processes are those with a word in their command lines, in which zeros stand
// between arguments.
func (m *machine) processes(word string) []int {
	m.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		m.t.Fatal(err)
	}
	var found []int
	for _, p := range procs {
		if line, err := os.ReadFile(p); err == nil && bytes.Contains(line, []byte(word)) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
				found = append(found, pid)
			}
		}
	}
	return found
}
