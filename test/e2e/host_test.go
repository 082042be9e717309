package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

// Init lists what it changes, changes nothing the second time, and reset leaves no
// trace: rules, addresses, sysctls and files are as they were.
func TestHostInitAndReset(t *testing.T) {
	if !inside(t) {
		return
	}
	root := &user{t: t}
	before := hostLines(t)
	out := root.must("mvm", "host", "init")
	says(t, out, "sysctl net.ipv4.ip_forward", "group mvm", "file /etc/sudoers.d/mvm", "program /usr/local/lib/mvm/mvm-helper",
		"symlink /etc/systemd/system/multi-user.target.wants/mvm.service", "bridge mvm-default", "usermod -aG mvm")
	initialised := hostLines(t)
	if slices.Equal(before, initialised) {
		t.Fatal("init changed nothing")
	}
	says(t, root.must("visudo", "-c"), "/etc/sudoers.d/mvm: parsed OK")
	says(t, root.must("mvm", "host", "init"), "nothing was changed")
	says(t, root.must("mvm", "host", "init", "--json"), `"changes": []`)
	sameHost(t, "after a second init", initialised)
	says(t, root.must("mvm", "host", "status"), "set up by 'mvm host init': yes", "you are: root")
	var info struct {
		Memory struct {
			TotalMiB int `json:"total_mib"`
		}
		Capacity struct {
			RecommendedMaxVMs int    `json:"recommended_max_vms"`
			BoundedBy         string `json:"bounded_by"`
		}
		DetectedAt string `json:"detected_at"`
	}
	read := func(args ...string) {
		t.Helper()
		if err := json.Unmarshal([]byte(root.run(append([]string{"mvm", "host", "info", "--json"}, args...)...).stdout), &info); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if info.Memory.TotalMiB <= 0 || info.Capacity.RecommendedMaxVMs <= 0 || info.Capacity.BoundedBy == "" {
		t.Errorf("info is %+v", info)
	}
	first := info.DetectedAt
	if read(); info.DetectedAt != first {
		t.Error("info looked at the host again without being asked")
	}
	if read("--refresh"); info.DetectedAt == first {
		t.Error("info did not look at the host again when it was asked")
	}

	root.must("mvm", "network", "create", "lab")
	says(t, root.must("mvm", "host", "clean", "--force"), "bridge mvm-default", "bridge mvm-lab")
	if links := shell(t, "ip", "-o", "link"); strings.Contains(links, "mvm-") {
		t.Errorf("left after clean:\n%s", links)
	}
	root.must("mvm", "network", "sync")
	says(t, root.must("mvm", "host", "reset", "--force"), "bridge mvm-lab", "group mvm", "sysctl net.ipv4.ip_forward")
	sameHost(t, "after reset", before)
	says(t, root.must("mvm", "host", "reset", "--force"), "nothing of mvm's")
	says(t, root.must("mvm", "host", "reset", "--force", "--json"), `"changes": []`)
	says(t, root.must("mvm", "host", "clean", "--force", "--json"), `"changes": []`)
}

// What somebody has changed since is told and left; the rest is put back.
func TestHostResetLeavesWhatWasChanged(t *testing.T) {
	if !inside(t) {
		return
	}
	root := &user{t: t}
	before := hostLines(t)
	root.must("mvm", "network", "create", "lab") // turns forwarding on, before init
	root.must("mvm", "host", "init")
	shell(t, "useradd", "--create-home", "alice")
	shell(t, "usermod", "-aG", "mvm", "alice")
	const file = "/etc/sysctl.d/99-mvm.conf"
	mine := "net.ipv4.ip_forward = 0\n"
	write := func() {
		t.Helper()
		if err := os.WriteFile(file, []byte(mine), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	says(t, root.must("mvm", "host", "status"), file, "not all of it")
	out := root.must("mvm", "host", "reset", "--force")
	says(t, out, file+" is left as it is (net.ipv4.ip_forward = 0): it was changed since", "members [alice]")
	if data, err := os.ReadFile(file); err != nil || string(data) != mine {
		t.Errorf("the user's file is %q, %v", data, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	shell(t, "userdel", "--force", "--remove", "alice") // somebody of another test may have that number
	after := slices.DeleteFunc(hostLines(t), accounts)
	for _, l := range after {
		if !slices.Contains(before, l) {
			t.Errorf("new: %.200s", l)
		}
	}

	// An init between two changes by hand: the last one is what was before.
	root.must("mvm", "host", "init")
	write()
	says(t, root.must("mvm", "host", "init"), file)
	root.must("mvm", "host", "reset", "--force")
	if data, err := os.ReadFile(file); err != nil || string(data) != mine {
		t.Errorf("what was there before the second init is %q, %v", data, err)
	}
}

// accounts are the lines of files that useradd and userdel write, and their backups.
func accounts(line string) bool {
	for _, name := range []string{"passwd", "group", "shadow", "gshadow", "subuid", "subgid"} {
		if strings.HasPrefix(line, "file | /etc/"+name+" ") || strings.HasPrefix(line, "file | /etc/"+name+"-") {
			return true
		}
	}
	return false
}

// Killed at any point, init leaves the host as it was once the next command has
// looked; reset is finished by it.
func TestHostInitKilled(t *testing.T) {
	if !inside(t) {
		return
	}
	root := &user{t: t}
	root.must("mvm", "host", "status")
	before := hostLines(t)
	trace := t.TempDir() + "/trace"
	points := func(kind string, command ...string) []string {
		t.Helper()
		traced := &user{t: t, env: []string{"MVM_FAULT=trace:" + kind + ":" + trace + ":after"}}
		traced.must(append([]string{"mvm", "host"}, command...)...)
		data, err := os.ReadFile(trace)
		if err != nil || os.Remove(trace) != nil {
			t.Fatal(err)
		}
		// What is before a step is after the one before it.
		return slices.DeleteFunc(strings.Fields(string(data)), func(p string) bool { return strings.HasSuffix(p, ":before") })
	}
	inits := points("host.init", "init")
	resets := points("host.reset", "reset", "--force")
	sameHost(t, "after tracing", before)
	if len(inits) < 9 || len(resets) < 9 {
		t.Fatalf("points are %q and %q", inits, resets)
	}
	kill := func(point string, command ...string) {
		t.Helper()
		killed := &user{t: t, env: []string{"MVM_FAULT=kill:" + point}}
		if r := killed.run(append([]string{"mvm", "host"}, command...)...); r.code == 0 {
			t.Errorf("%s: it was not killed", point)
		}
	}
	for _, p := range inits {
		kill(p, "init")
		root.must("mvm", "host", "status")
		if strings.HasSuffix(p, "commit:after") {
			root.must("mvm", "host", "reset", "--force")
		}
		sameHost(t, "killed at "+p, before)
	}
	for _, p := range resets {
		root.must("mvm", "host", "init")
		kill(p, "reset", "--force")
		root.must("mvm", "host", "status")
		sameHost(t, "killed at "+p, before)
	}
}
