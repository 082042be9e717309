package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// wantJail sees that a VM's VMM is in a jail or not, that inspect tells, and that it
// is one: by what the kernel says of the process.
func (u user) wantJail(v inspected, want bool) {
	u.t.Helper()
	p := v.Process
	if p.Jailed != want || (p.Jail != nil) != want {
		u.t.Errorf("it is jailed: %v, %+v; want %v", p.Jailed, p.Jail, want)
		return
	}
	proc := "/proc/" + strconv.Itoa(p.PID)
	status := u.status(proc)
	uid, root := "0", "/"
	if want {
		uid, root = strconv.Itoa(p.Jail.UID), p.Jail.Root
	}
	if got := strings.Fields(status["Uid"]); len(got) != 4 || got[0] != uid || got[1] != uid {
		u.t.Errorf("its user is %q, want %s", got, uid)
	}
	a, err1 := os.Stat(proc + "/root")
	b, err2 := os.Stat(root)
	if err1 != nil || err2 != nil || !os.SameFile(a, b) {
		u.t.Errorf("its root directory is not %s: %v, %v", root, err1, err2)
	}
	if got := len(strings.Fields(status["NSpid"])); (got == 2) != want {
		u.t.Errorf("it is in %d pid namespaces", got)
	}
	if !want {
		return
	}
	if len(p.Jail.Without) > 0 || len(p.Jail.Cgroups) == 0 {
		u.t.Errorf("its cgroups are %q, it goes without %q", p.Jail.Cgroups, p.Jail.Without)
	}
	for _, dir := range p.Jail.Cgroups {
		for file, want := range map[string]string{"memory.max": "269484032", "pids.max": "512"} {
			if data, err := os.ReadFile(filepath.Join(dir, file)); err != nil || strings.TrimSpace(string(data)) != want {
				u.t.Errorf("%s of %s is %q, %v, want %s", file, dir, data, err, want)
			}
		}
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil || !slices.Contains(strings.Fields(string(procs)), strconv.Itoa(p.PID)) {
			u.t.Errorf("in %s is %q, %v, want %d", dir, procs, err, p.PID)
		}
	}
	if len(p.Argv) == 0 || p.Argv[0] != "/firecracker" {
		u.t.Errorf("its command line is %q", p.Argv)
	}
}

func (u user) status(proc string) map[string]string {
	u.t.Helper()
	data, err := os.ReadFile(proc + "/status")
	if err != nil {
		u.t.Error(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		m[key] = value
	}
	return m
}
