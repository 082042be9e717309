package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// counter runs in a guest for as long as its memory lives: where it stands tells
// one life from the next.
const counter = `(i=0; while :; do i=$((i+1)); echo $i >/run/counter; sleep 0.1; done) >/dev/null 2>&1 </dev/null &`

// TestSnapshot takes a VM's snapshot, makes VMs of it and puts it back.
func TestSnapshot(t *testing.T) {
	m := newMachine(t)
	m.must("vm", "create", "first", "--image", "tiny", "--mem", "128", "--wait") // makes the network
	m.must("vm", "rm", "--force", "first")
	before := m.listing()

	m.must("volume", "create", "data", "64M", "--sparse", "--mkfs", "ext4")
	m.must("vm", "create", "web", "--image", "tiny", "--mem", "128", "--volume", "data:/data", "--wait")
	m.must("exec", "web", "--", "sh", "-c", "echo kept | tee /root/before >/data/before; "+counter)
	m.until("the counter runs", func() bool { return m.count("web") > 0 })
	m.must("snapshot", "create", "web", "--name", "warm")
	if got := m.vm("web").Status; got != "running" {
		t.Fatalf("after the snapshot it is %s", got)
	}
	m.must("exec", "web", "--", "touch", "/root/after", "/data/after")
	m.refused([]string{"warm", "exists"}, "snapshot", "create", "web", "--name", "warm")

	t.Run("restore", func(t *testing.T) { m.of(t).restore() })
	t.Run("paused", func(t *testing.T) { m.of(t).restorePaused() })
	t.Run("pair", func(t *testing.T) { m.of(t).pair() })
	t.Run("damaged", func(t *testing.T) { m.of(t).damaged() })

	m.must("vm", "rm", "--force", "web")
	m.must("volume", "rm", "-f", "data")
	m.refused([]string{"snapshot \"warm\" needs it"}, "image", "rm", "tiny")
	m.must("snapshot", "rm", "-f", "warm")
	m.sameListing(before)
}

// count is where a guest's counter stands; 0 where there is none.
func (m *machine) count(vm string) int {
	m.t.Helper()
	n, _ := strconv.Atoi(strings.TrimSpace(m.run("exec", vm, "--", "cat", "/run/counter").stdout))
	return n
}

// restore makes two VMs of one snapshot; they share nothing that makes a machine.
func (m *machine) restore() {
	t := m.t
	m.must("snapshot", "restore", "warm", "copy", "--count", "2", "--resume")
	seen := map[string]string{}
	for _, vm := range []string{"web", "copy-1", "copy-2"} {
		for _, secret := range []string{
			"cat /etc/machine-id", "cat /sys/class/net/eth0/address", "md5sum </etc/dropbear/dropbear_ed25519_host_key",
			"head -c 16 /dev/urandom | md5sum", "cat /proc/sys/kernel/hostname", "ip -4 -o addr show eth0 | cut -d' ' -f7", "md5sum </run/mvm/agent.json",
		} {
			got := m.must("exec", vm, "--", "sh", "-c", secret)
			if other, known := seen[secret+got]; known || strings.TrimSpace(got) == "" {
				t.Errorf("%q is the same in %s and %s: %q", secret, other, vm, got)
			}
			seen[secret+got] = vm
		}
		// Over the network, with the host key that was made for it.
		if got := m.ssh(vm, "hostname"); got != vm {
			t.Errorf("%s says over the network that it is %q", vm, got)
		}
	}
	for _, vm := range []string{"copy-1", "copy-2"} {
		if got := strings.TrimSpace(m.must("exec", vm, "--", "sh", "-c", "cat /root/before /data/before; ls /root; ls /data | grep -v lost")); got != "kept\nkept\nbefore\nbefore" {
			t.Errorf("%s has %q", vm, got)
		}
		was := m.count(vm)
		m.until("the counter of "+vm+" goes on", func() bool { return m.count(vm) > was && was > 0 })
		m.must("exec", vm, "--", "sh", "-c", "echo own >/root/own && sync")
	}
	// The VMM lives through a reset of a device whose state was loaded.
	was := m.vm("copy-2").PID
	m.must("exec", "copy-2", "--", "sh", "-c", `cd /sys/bus/virtio/drivers/virtio_net && for d in virtio*; do echo $d >unbind && echo $d >bind; done`)
	if got := m.vm("copy-2"); got.PID != was || got.Status != "running" {
		t.Errorf("after a reset of its network card copy-2 is %s, process %d, which was %d", got.Status, got.PID, was)
	}
	m.must("vm", "reboot", "copy-1", "--wait")
	if got := m.ssh("copy-1", "hostname; cat /root/own"); got != "copy-1\nown" {
		t.Errorf("after a reboot copy-1 says %q", got)
	}
	m.must("vm", "rm", "--force", "copy-1", "copy-2")
	m.must("volume", "rm", "-f", "copy-1-data", "copy-2-data")
}

func (m *machine) restorePaused() {
	m.must("snapshot", "restore", "warm", "still")
	if got := m.vm("still").Status; got != "paused" {
		m.t.Fatalf("it is %s, want paused", got)
	}
	m.must("vm", "resume", "still")
	if got := m.ssh("still", "hostname"); got != "still" {
		m.t.Errorf("it calls itself %q", got)
	}
	m.must("vm", "rm", "--force", "still")
	m.must("volume", "rm", "-f", "still-data")
}

// pair writes a VM to files and puts it back, twice.
func (m *machine) pair() {
	t, dir := m.t, m.config
	mem, state := filepath.Join(dir, "web.mem"), filepath.Join(dir, "web.state")
	m.must("vm", "snapshot", "web", mem, state)
	m.refused([]string{mem, "already"}, "vm", "snapshot", "web", mem, filepath.Join(dir, "other"))
	m.refused([]string{"running"}, "vm", "load", "web", mem, state)
	at := m.count("web")
	for range 2 {
		m.must("exec", "web", "--", "sh", "-c", "touch /root/later; sync")
		m.must("vm", "stop", "--force", "web")
		m.must("vm", "load", "web", mem, state, "--resume")
		if got := m.must("exec", "web", "--", "ls", "/root"); got != "after\nbefore\n" {
			t.Errorf("after the load /root has %q", got)
		}
		if got := m.count("web"); got < at-600 || got > at+600 || got == 0 { // of the life that was written, within a minute
			t.Errorf("the counter stands at %d, it was at %d", got, at)
		}
	}
	for _, f := range []string{mem, state, state + ".mvm"} {
		if err := os.RemoveAll(f); err != nil {
			t.Error(err)
		}
	}
}

// damaged tries to load what is not whole, or of another VM.
func (m *machine) damaged() {
	t, dir := m.t, m.config
	mem, state := filepath.Join(dir, "d.mem"), filepath.Join(dir, "d.state")
	m.must("vm", "snapshot", "web", mem, state)
	m.must("vm", "stop", "--force", "web")
	whole, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	size, err := os.Stat(mem)
	if err != nil {
		t.Fatal(err)
	}
	before := m.listing()
	for _, c := range []struct {
		do    func() error
		words []string
	}{
		{func() error { return os.WriteFile(state, whole[:len(whole)/2], 0o600) }, []string{"cut short"}},
		{func() error { return os.WriteFile(state, append(whole[:len(whole)-1:len(whole)-1], 'x'), 0o600) }, []string{"is not what was written"}},
		{func() error {
			return errors.Join(os.WriteFile(state, whole, 0o600), os.Truncate(mem, size.Size()-4096))
		}, []string{mem, "bytes in place of"}},
		{func() error { return os.Remove(mem) }, []string{mem, "missing"}},
		{func() error { return os.RemoveAll(state + ".mvm") }, []string{"is no snapshot of mvm"}},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		m.refused(c.words, "vm", "load", "web", mem, state)
	}
	m.sameListing(before)
	m.must("vm", "start", "web", "--wait")
	if err := os.Remove(state); err != nil {
		t.Error(err)
	}
	var s struct {
		Loadable bool `json:"loadable"`
	}
	if err := json.Unmarshal([]byte(m.must("snapshot", "inspect", "warm", "--json")), &s); err != nil || !s.Loadable {
		t.Errorf("snapshot inspect: %+v, %v", s, err)
	}
}

// TestRestoreDiesAnywhere kills `snapshot restore` before and after each step of its
// plan. The next command finds nothing left of the VM that was to be, and the
// snapshot and its VM as they were.
func TestRestoreDiesAnywhere(t *testing.T) {
	m := newMachine(t)
	m.must("vm", "create", "web", "--image", "tiny", "--mem", "128", "--wait")
	m.must("snapshot", "create", "web", "--name", "warm")
	before := m.listing()
	n := 0
	for ; n < maxSteps; n++ {
		for _, when := range []string{"before", "after"} {
			m.env = []string{"MVM_FAULT=kill:vm.restore:" + strconv.Itoa(n) + ":" + when}
			r := m.run("snapshot", "restore", "warm", "copy", "--resume")
			m.env = nil
			if r.code == 0 { // no such step
				if n < 7 || m.ssh("copy", "hostname") != "copy" {
					t.Errorf("restored after %d steps", n)
				}
				m.must("vm", "rm", "--force", "copy")
				m.sameListing(before)
				return
			}
			m.sameListing(before)
			if t.Failed() {
				t.Fatalf("after a kill %s step %d: exit %d %s", when, n, r.code, r.stderr)
			}
		}
	}
	t.Errorf("the plan has more than %d steps", n)
}
