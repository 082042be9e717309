package lab

import (
	"strconv"
	"strings"
)

// counter runs in a guest for as long as its memory lives.
const counter = `(i=0; while :; do i=$((i+1)); echo $i >/run/counter; sleep 0.2; done) >/dev/null 2>&1 </dev/null &`

// snapshots sees that a VM goes on after its snapshot, that two VMs are made of it
// which share nothing that makes a machine, and that it is put back from files.
func (u user) snapshots(name string) {
	u.t.Helper()
	u.must("exec", name, "--", "sh", "-c", "echo before >/root/moment; "+counter)
	u.must("snapshot", "create", name, "--name", "warm")
	if got := u.inspect(name).VM.Status; got != "running" {
		u.t.Fatalf("after its snapshot %s is %s", name, got)
	}
	u.must("exec", name, "--", "sh", "-c", "echo after >/root/moment; sync")
	u.must("snapshot", "restore", "warm", "copy", "--count", "2", "--resume")
	own := map[string]string{}
	for _, vm := range []string{name, "copy-1", "copy-2"} {
		for _, what := range []string{"cat /etc/machine-id", "cat /sys/class/net/eth0/address", "md5sum </etc/dropbear/dropbear_ed25519_host_key", "head -c 16 /dev/urandom | md5sum"} {
			got := u.agent(vm, "sh", "-c", what)
			if other, known := own[what+got]; known || got == "" {
				u.t.Errorf("%q is the same in %s and %s: %q", what, vm, other, got)
			}
			own[what+got] = vm
		}
		if got := u.ssh(vm, "hostname"); got != vm { // over the network, with a host key of its own
			u.t.Errorf("%s says over the network that it is %q", vm, got)
		}
	}
	for _, vm := range []string{"copy-1", "copy-2"} {
		if got := u.agent(vm, "cat", "/root/moment"); got != "before" {
			u.t.Errorf("%s is of the moment %q", vm, got)
		}
		if n, err := strconv.Atoi(u.agent(vm, "cat", "/run/counter")); err != nil || n < 1 {
			u.t.Errorf("the counter of %s stands at %d, %v: its memory was not kept", vm, n, err)
		}
	}
	u.must("vm", "rm", "--force", "copy-1", "copy-2")
	u.must("snapshot", "rm", "-f", "warm")
	u.pair(name)
}

// pair writes a VM to two files and puts it back.
func (u user) pair(name string) {
	u.t.Helper()
	dir := u.t.TempDir()
	mem, state := dir+"/mem", dir+"/state"
	u.must("exec", name, "--", "sh", "-c", "echo written >/root/moment; sync")
	u.must("vm", "snapshot", name, mem, state)
	u.must("exec", name, "--", "sh", "-c", "echo lost >/root/moment; sync")
	u.must("vm", "stop", "--force", name)
	u.must("vm", "load", name, mem, state)
	if got := u.inspect(name).VM.Status; got != "paused" {
		u.t.Errorf("after the load %s is %s", name, got)
	}
	u.must("vm", "resume", name)
	if got := u.agent(name, "cat", "/root/moment"); got != "written" {
		u.t.Errorf("after the load %s is of the moment %q", name, got)
	}
	if got := u.ssh(name, "hostname"); !strings.EqualFold(got, name) {
		u.t.Errorf("after the load it calls itself %q", got)
	}
}
