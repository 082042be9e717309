package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience bounds each command, below the lab's silence: a guest in an emulated
// guest boots in a minute where nothing else runs.
const patience = 6 * time.Minute

// user is the one who sits in the lab guest.
type user struct{ t *testing.T }

// newUser is TestNewUser inside the lab.
func newUser(t *testing.T) {
	u := user{t}
	u.must("init", "--non-interactive", "--skip-host")
	u.hostStatus()
	u.must("config", "set", "settings.vm", "ready_timeout_sec", "320") // guests are slow here
	before := u.listing()

	u.must("vm", "create", "fc", "--image", "tiny", "--mem", "128", "--wait")
	fc := u.inspect("fc")
	if fc.VM.Status != "running" || fc.VM.Hypervisor != "firecracker" || fc.VM.Accel != "kvm" || fc.Process.PID == 0 || fc.Process.SupervisorPID == 0 {
		t.Errorf("fc is %+v, %+v after create --wait", fc.VM, fc.Process)
	}
	if len(fc.Process.Argv) == 0 || filepath.Base(fc.Process.Argv[0]) != "firecracker" {
		t.Errorf("its process is %q", fc.Process.Argv)
	}
	if fc.Filesystem.Format != "raw" || !fc.Networking.TapUp {
		t.Errorf("inspect shows %+v, %+v", fc.Filesystem, fc.Networking)
	}
	u.wantJail(fc, jailer() != "")
	u.wantGuest("fc", fc)
	u.copies("fc", fc)
	u.stopAndStart("fc")
	u.pauseAndResume("fc")
	u.snapshots("fc")
	u.crash("fc")
	u.wantJail(u.inspect("fc"), jailer() != "")
	u.must("vm", "rm", "--force", "fc")
	u.sameListing(before)

	u.byMMIO()
	u.sameListing(before)
}

// hostStatus sees that auto means Firecracker here.
func (u user) hostStatus() {
	u.t.Helper()
	var status struct {
		Hypervisor string `json:"hypervisor"`
		KVM        bool   `json:"kvm_accessible"`
	}
	u.decode(&status, "host", "status", "--json")
	if !status.KVM || status.Hypervisor != "firecracker" {
		u.t.Fatalf("host status is %+v", status)
	}
}

// wantGuest sees that the guest is what was asked for.
func (u user) wantGuest(name string, v inspected) {
	u.t.Helper()
	if got := u.ssh(name, "hostname"); got != name {
		u.t.Errorf("hostname is %q", got)
	}
	if got := u.ssh(name, "ip -4 -o addr show eth0"); !strings.Contains(got, v.VM.IPv4+"/24") {
		u.t.Errorf("the guest's address is %q, its lease %s", got, v.VM.IPv4)
	}
	if got := u.ssh(name, "uname -r"); got == "" || !strings.Contains(v.Filesystem.Kernel, got) {
		u.t.Errorf("the guest runs kernel %q, asked for was %s", got, v.Filesystem.Kernel)
	}
	if got := u.ssh(name, "df -m / | tail -1 | awk '{print $2}'"); len(got) != 4 {
		u.t.Errorf("the root file system has %s MiB of a disk of 2048", got)
	}
	if got := u.ssh(name, "ping -c 1 -W 60 "+v.Networking.Gateway); !strings.Contains(got, "1 packets received") {
		u.t.Errorf("the gateway does not answer: %s", got)
	}
	if got := u.agent(name, "id", "-u"); got != "0" {
		u.t.Errorf("the agent runs commands as %q", got)
	}
	if code, _, _ := u.try("ssh", name, "-c", "exit 42"); code != 42 {
		u.t.Errorf("ssh -c 'exit 42' exits %d", code)
	}
}

// stopAndStart sees that a guest powers off when its agent is asked to, and that
// the disk is kept.
func (u user) stopAndStart(name string) {
	u.t.Helper()
	id := u.ssh(name, "echo kept > /root/note && cat /etc/machine-id")
	v := u.wantPowerOff(name)
	if slices.Contains(u.links(), "link "+v.Networking.Tap) {
		u.t.Errorf("the tap %s is there after stop", v.Networking.Tap)
	}
	u.must("vm", "start", name, "--wait")
	if got := u.ssh(name, "cat /root/note /etc/machine-id"); got != "kept\n"+id {
		u.t.Errorf("after stop and start the note and the machine-id are %q, want kept and %s", got, id)
	}
	if after := u.inspect(name); after.VM.IPv4 != v.VM.IPv4 || after.VM.Hypervisor != "firecracker" {
		u.t.Errorf("after stop and start it is %+v, before it was %+v", after.VM, v.VM)
	}
}

// wantPowerOff stops a VM and sees that its guest ended by itself.
func (u user) wantPowerOff(name string) inspected {
	u.t.Helper()
	u.must("vm", "stop", name, "--timeout", "1m")
	v := u.inspect(name)
	if v.VM.Status != "stopped" || v.VM.ExitCode == nil || *v.VM.ExitCode != 0 {
		u.t.Errorf("after stop it is %s, exit code %v: the guest did not power off by itself", v.VM.Status, v.VM.ExitCode)
	}
	return v
}

// pauseAndResume sees that agent and network answer after a pause, and that a
// paused guest is stopped as politely as one that runs.
func (u user) pauseAndResume(name string) {
	u.t.Helper()
	for range 2 {
		u.must("vm", "pause", name)
		if got := u.inspect(name).VM.Status; got != "paused" {
			u.t.Errorf("it is %s after pause", got)
		}
		u.must("vm", "resume", name)
		if got := u.inspect(name).VM.Status; got != "running" {
			u.t.Errorf("it is %s after resume", got)
		}
		if got := u.agent(name, "hostname"); got != name {
			u.t.Errorf("after pause and resume the agent says %q", got)
		}
		if got := u.ssh(name, "hostname"); got != name {
			u.t.Errorf("after pause and resume ssh says %q", got)
		}
	}
	u.must("vm", "pause", name)
	u.wantPowerOff(name)
	u.must("vm", "start", name, "--wait")
}

// crash kills the VMM and starts the VM again.
func (u user) crash(name string) {
	u.t.Helper()
	pid := u.inspect(name).Process.PID
	p, err := os.FindProcess(pid)
	if err != nil {
		u.t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		u.t.Fatal(err)
	}
	u.until(name+" is found to have crashed", func() bool { return u.inspect(name).VM.Status == "crashed" })
	u.must("vm", "start", name, "--wait=ssh")
	if got := u.ssh(name, "hostname"); got != name {
		u.t.Errorf("hostname is %q", got)
	}
}

// byMMIO starts a VM without PCI and without a jail, with what else Firecracker has,
// by name, and removes it politely.
func (u user) byMMIO() {
	u.t.Helper()
	u.must("vm", "create", "mmio", "--hypervisor", "firecracker", "--image", "tiny", "--mem", "128", "--vcpu", "2", "--no-pci",
		"--enable-logging", "--enable-metrics", "--no-jailer", "--wait")
	u.wantJail(u.inspect("mmio"), false)
	if got := u.ssh("mmio", "nproc; ls /sys/bus/pci/devices 2>/dev/null | wc -l"); got != "2\n0" {
		u.t.Errorf("the guest has %q vCPUs and PCI devices", got)
	}
	if got := u.must("logs", "mmio", "--os"); !strings.Contains(got, "Firecracker") {
		u.t.Errorf("the VMM's log is %q", got)
	}
	u.must("vm", "reboot", "mmio")
	u.must("vm", "wait", "mmio")
	if got := u.agent("mmio", "hostname"); got != "mmio" {
		u.t.Errorf("after reboot the agent says %q", got)
	}
	u.must("vm", "rm", "mmio")
}

// inspected is what the tests read of `vm inspect --json`.
type inspected struct {
	VM struct {
		ID, Status, IPv4, Hypervisor, Accel string
		ExitCode                            *int `json:"exit_code"`
	} `json:"vm"`
	Networking struct {
		Gateway, Tap string
		TapUp        bool `json:"tap_up"`
	} `json:"networking"`
	Filesystem struct{ Directory, Format, Kernel string } `json:"filesystem"`
	Process    struct {
		PID           int `json:"pid"`
		SupervisorPID int `json:"supervisor_pid"`
		Jailed        bool
		Jail          *struct {
			UID              int
			Root             string
			Cgroups, Without []string
		}
		Argv []string
	} `json:"process"`
}

func (u user) inspect(name string) (v inspected) {
	u.t.Helper()
	u.decode(&v, "vm", "inspect", name, "--json")
	return v
}

func (u user) decode(v any, args ...string) {
	u.t.Helper()
	out := u.must(args...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		u.t.Fatalf("mvm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (u user) ssh(name, command string) string {
	u.t.Helper()
	return strings.TrimSpace(u.must("ssh", name, "-t", "60", "-c", command))
}

func (u user) agent(name string, command ...string) string {
	u.t.Helper()
	return strings.TrimSpace(u.must(append([]string{"exec", name, "--"}, command...)...))
}

// try runs mvm, and says how long it took: on a hang the last line tells where.
func (u user) try(args ...string) (code int, stdout, stderr string) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mvm", args...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	begin := time.Now()
	err := cmd.Run()
	u.t.Logf("mvm %s: %.1f s", strings.Join(args, " "), time.Since(begin).Seconds())
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		u.t.Fatalf("mvm %s: %v", strings.Join(args, " "), err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), diag.String()
}

func (u user) must(args ...string) string {
	u.t.Helper()
	code, stdout, stderr := u.try(args...)
	if code != 0 {
		u.showLogs()
		u.t.Fatalf("mvm %s: exit %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// showLogs shows what VMs and VMMs said last, before a failure ends the lab.
func (u user) showLogs() {
	u.t.Helper()
	for _, pattern := range []string{"*.log", "*.console", "*.stderr", "*.json"} {
		files, _ := filepath.Glob(filepath.Join(os.Getenv("MVM_CACHE_DIR"), "vms", "*", pattern))
		for _, f := range files {
			if data, err := os.ReadFile(f); err == nil && filepath.Base(f) != "identity.json" {
				u.t.Logf("%s:\n%s", f, tail(string(data)))
			}
		}
	}
}

func (u user) until(what string, done func() bool) {
	u.t.Helper()
	end := time.Now().Add(patience)
	for !done() {
		if time.Now().After(end) {
			u.t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (u user) links() []string {
	u.t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		u.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, "link "+e.Name())
	}
	return names
}

// listing is all that VMs can leave in the lab: processes, links and files.
func (u user) listing() []string {
	u.t.Helper()
	all := u.links()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		u.t.Fatal(err)
	}
	for _, p := range procs {
		if data, err := os.ReadFile(p); err == nil && len(data) > 0 { // kernel threads have none
			all = append(all, "process "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	files, err := filepath.Glob(filepath.Join(os.Getenv("MVM_CACHE_DIR"), "vms", "*"))
	if err != nil {
		u.t.Fatal(err)
	}
	for _, f := range files {
		all = append(all, "file "+f)
	}
	cgroups, err := filepath.Glob("/sys/fs/cgroup/mvm*")
	if err != nil {
		u.t.Fatal(err)
	}
	for _, c := range cgroups {
		all = append(all, "cgroup "+c)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		u.t.Fatal(err)
	}
	all = append(all, "mounts "+string(mounts))
	slices.Sort(all)
	return all
}

func (u user) sameListing(before []string) {
	u.t.Helper()
	if after := u.listing(); !slices.Equal(before, after) {
		u.t.Errorf("before:\n%s\nnow:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}
