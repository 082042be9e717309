package supervisor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
)

// A jailed VMM is the first process of its pid namespace, and sees mounts that
// nobody else does.
func TestJail(t *testing.T) {
	testenv.Require(t, "root", "netns")
	s := spec(t, `echo pid $$; cat shared; echo written >>shared; cat fixed; echo no >>fixed || echo refused; while :; do read line || exit 5; [ "$line" = end ] && exit 6; done`)
	for name, text := range map[string]string{"disk": "disk\n", "kernel": "kernel\n", "shared": "", "fixed": ""} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(s.Dir, name) }
	s.Jail = &Jail{Binds: []Bind{{From: in("disk"), To: in("shared")}, {From: in("kernel"), To: in("fixed"), ReadOnly: true}}}
	st := spawn(t, s)
	eventually(t, "the console's end", contains(s.Console, "refused"))
	got, err := os.ReadFile(s.Console)
	if want := "pid 1\ndisk\nkernel\nrefused\n"; err != nil || string(got) != want {
		t.Errorf("the console has %q, %v; want %q", got, err, want)
	}
	if data, err := os.ReadFile(in("disk")); err != nil || string(data) != "disk\nwritten\n" {
		t.Errorf("the disk has %q, %v", data, err)
	}
	for _, pid := range []string{"self", strconv.Itoa(st.Supervisor.PID)} {
		if mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo"); err != nil || strings.Contains(string(mounts), s.Dir) {
			t.Errorf("process %s sees a mount of the jail: %v", pid, err)
		}
	}
	if mounts, err := os.ReadFile("/proc/" + strconv.Itoa(st.VMM.PID) + "/mountinfo"); err != nil || !strings.Contains(string(mounts), " "+in("shared")+" rw,nosuid") || !strings.Contains(string(mounts), " "+in("fixed")+" ro,nosuid") {
		t.Errorf("the VMM's mounts: %s, %v", mounts, err)
	}
	if err := proc.Kill(t.Context(), st.VMM, time.Hour); err != nil {
		t.Fatal(err)
	}
	exit, err := vmm.WaitExit(t.Context(), vmm.Handle{Dir: s.Dir, VMM: st.VMM, Supervisor: st.Supervisor})
	if err != nil || exit.Signal != "SIGKILL" {
		t.Errorf("exit is %+v, %v", exit, err)
	}
}

func TestJailRefuses(t *testing.T) {
	testenv.Require(t, "root", "netns")
	s := spec(t, "echo runs")
	s.Jail = &Jail{Binds: []Bind{{From: filepath.Join(s.Dir, "none"), To: s.Dir}}}
	if _, err := Spawn(t.Context(), Launcher{Exe: os.Args[0]}, s); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("Spawn: %v", err)
	}
}
