package host

import (
	"os"
	"strings"
	"testing"
)

func TestCgroupVersion(t *testing.T) {
	const dir = "sys/fs/cgroup/"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  int
	}{
		{"unified", map[string]string{dir + "cgroup.controllers": "cpu memory\n", dir + "cgroup.procs": ""}, 2},
		{"one hierarchy a controller", map[string]string{dir + "memory/tasks": ""}, 1},
		{"hybrid", map[string]string{dir + "memory/tasks": "", dir + "unified/cgroup.controllers": ""}, 1},
		{"not mounted", nil, 0},
	} {
		if got := cgroupVersion(fakeRoot(t, tc.files)); got != tc.want {
			t.Errorf("%s: version %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestNestedVirt(t *testing.T) {
	const intel, amd = "sys/module/kvm_intel/parameters/nested", "sys/module/kvm_amd/parameters/nested"
	for _, tc := range []struct {
		files map[string]string
		want  bool
	}{
		{map[string]string{intel: "Y\n"}, true},
		{map[string]string{intel: "N\n"}, false},
		{map[string]string{amd: "1\n"}, true},
		{map[string]string{amd: "0\n"}, false},
		{map[string]string{intel: ""}, false},
		{nil, false},
	} {
		if got := nestedVirt(fakeRoot(t, tc.files)); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.files, got, tc.want)
		}
	}
}

func TestCheckNetNS(t *testing.T) {
	const ns, status = "proc/self/ns/net", "proc/self/status"
	all := "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n"
	for _, tc := range []struct {
		name       string
		files      map[string]string
		privileged bool
		what       string // part of the problem, "" for none
	}{
		{"root", map[string]string{ns: "", status: all}, true, ""},
		{"root, nothing known", map[string]string{ns: ""}, true, ""},
		{"a user", map[string]string{ns: "", status: all}, false, "needs root"},
		{"root in a container", map[string]string{ns: "", status: "CapEff:\t00000000a80425fb\n"}, true, "container"},
		{"not built in", map[string]string{status: all}, true, "no network namespaces"},
	} {
		p := checkNetNS(fakeRoot(t, tc.files), tc.privileged)
		if (p.What == "") != (tc.what == "") || !strings.Contains(p.What, tc.what) || (p.What == "") != (p.Hint == "") {
			t.Errorf("%s: %+v, want %q and a hint", tc.name, p, tc.what)
		}
	}
}

func TestCheckUserNS(t *testing.T) {
	const most, debian, ubuntu = "proc/sys/user/max_user_namespaces", "proc/sys/kernel/unprivileged_userns_clone", "proc/sys/kernel/apparmor_restrict_unprivileged_userns"
	for _, tc := range []struct {
		name       string
		files      map[string]string
		user, root string // part of the problem, "" for none
	}{
		{"allowed", map[string]string{most: "95000\n", debian: "1\n", ubuntu: "0\n"}, "", ""},
		{"nothing else is known", map[string]string{most: "95000\n"}, "", ""},
		{"off", map[string]string{most: "0\n"}, "switched off", "switched off"},
		{"not built in", nil, "has no user namespaces", "has no user namespaces"},
		{"Debian", map[string]string{most: "95000\n", debian: "0\n"}, "root's only", ""},
		{"Ubuntu", map[string]string{most: "95000\n", ubuntu: "1\n"}, "AppArmor", ""},
	} {
		root := fakeRoot(t, tc.files)
		for privileged, want := range map[bool]string{false: tc.user, true: tc.root} {
			p := checkUserNS(root, privileged)
			if (p.What == "") != (want == "") || !strings.Contains(p.What, want) || (p.What == "") != (p.Hint == "") {
				t.Errorf("%s, privileged %v: %+v, want %q and a hint", tc.name, privileged, p, want)
			}
		}
	}
}

// The real host answers, and opens nothing that stays.
func TestTheRealSystem(t *testing.T) {
	if n := Cores(); n < 1 {
		t.Errorf("%d cores", n)
	}
	if v := CgroupVersion(); v < 0 || v > 2 {
		t.Errorf("cgroup version %d", v)
	}
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	_, _, _ = NestedVirt(), CheckUserNS(), CheckKVM()
	if after, err := os.ReadDir("/proc/self/fd"); err != nil || len(after) != len(before) {
		t.Errorf("%d files are open, and %d were before (%v)", len(after), len(before), err)
	}
}
