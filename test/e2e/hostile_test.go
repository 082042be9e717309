package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// hostile has a guest's agent be replaced by a program that sends without end, on the
// console too. Commands end all the same, by their own limits, and say so; what the host
// keeps of it keeps its size.
func (m *machine) hostile() {
	t, id := m.t, m.vm("g-2").ID
	supervisors := m.processes("__supervise\x00mvm-" + id)
	if len(supervisors) != 1 {
		t.Fatalf("supervisors: %v", supervisors)
	}
	m.must("exec", "g-2", "--", "sh", "-c", `dev=/dev/$(ls /sys/class/virtio-ports)
		(sleep 1; kill -9 $(pidof mvm-agent); cat /dev/zero >$dev & yes flood >/dev/console) >/dev/null 2>&1 </dev/null &`)
	m.until("the agent is gone", func() bool { return m.run("exec", "-t", "2", "g-2", "true").code != 0 })
	note := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(note, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, args := range [][]string{
		{"exec", "-t", "2", "g-2", "true"},

		{"cp", note, "g-2:/root/"},
		{"cp", "g-2:/etc/passwd", t.TempDir()},
		{"connect", "g-2"},
		{"forward", "g-2", "0:22"},
		{"vm", "wait", "g-2", "--timeout", "2s"},
		{"vm", "wait", "g-2", "--for", "port:22", "--timeout", "2s"},
	} {
		all.Go(func() { m.fails(args...) })
	}
	all.Wait()
	log := m.serialLog("g-2")
	if now := m.processes("__supervise\x00mvm-" + id); !slices.Equal(now, supervisors) {
		t.Fatalf("the supervisor was process %d, and now is %v\n%s", supervisors[0], now, m.remains("g-2", filepath.Dir(log)))
	}
	m.until("the console's log was begun anew", func() bool { _, err := os.Stat(log + ".1"); return err == nil })
	var size int64
	for _, f := range []string{log, log + ".1"} {
		if fi, err := os.Stat(f); err == nil {
			size += fi.Size()
		}
	}
	if size > 4<<20 {
		t.Errorf("the console's log has %d bytes", size)
	}
	if rss := residentMiB(t, supervisors[0]); rss > 64 {
		t.Errorf("the supervisor has %d MiB of a guest that sends without end", rss)
	}
	m.must("vm", "reboot", "--force", "g-2")
	m.must("vm", "wait", "g-2")
	if got := m.must("exec", "g-2", "hostname"); got != "g-2\n" {
		t.Errorf("after a reboot: %q", got)
	}
}

// fails runs mvm, which has to say why it fails and what to do.
func (m *machine) fails(args ...string) {
	r := m.run(args...)
	if r.code == 0 || !strings.Contains(r.stderr, "error: ") || !strings.Contains(r.stderr, "hint: ") {
		m.t.Errorf("mvm %q: %+v", args, r)
	}
}

// remains tells what is known of how a VM, or its supervisor, ended.
func (m *machine) remains(name, dir string) string {
	all := m.run("vm", "inspect", name).stdout
	for _, file := range []string{"exit.json", "vmm.err", "qemu.log", "supervisor.crash", "supervisor.crash.1"} {
		if data, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			all += fmt.Sprintf("%s: %.4000s\n", file, data)
		}
	}
	return all
}

// serialLog is where a VM's console is written to.
func (m *machine) serialLog(name string) string {
	m.t.Helper()
	var all []struct {
		Name string `json:"name"`
		Log  string `json:"serial_output_path"`
	}
	if err := json.Unmarshal([]byte(m.must("vm", "ls", "--json")), &all); err != nil {
		m.t.Fatal(err)
	}
	for _, v := range all {
		if v.Name == name && v.Log != "" {
			return v.Log
		}
	}
	m.t.Fatalf("%s has no console", name)
	return ""
}

// residentMiB is the memory of a process (proc_pid_status(5), VmRSS).
func residentMiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatalf("no VmRSS in %q", status)
	}
	kib, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}
