package vmmtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// wantJail holds a VMM that runs to the jail that its launch asks for, by what
// /proc says of the process.
func wantJail(t *testing.T, l vmm.Launch, h vmm.Handle) {
	t.Helper()
	if (l.Jail != nil) != (h.Jail != nil) {
		t.Fatalf("the handle's jail is %+v, asked for was %+v", h.Jail, l.Jail)
	}
	if l.Jail == nil {
		return
	}
	proc := "/proc/" + strconv.Itoa(h.VMM.PID)
	status := fields(t, proc+"/status", ":")
	uid, gid := strconv.Itoa(l.Jail.UID), strconv.Itoa(l.Jail.GID)
	for key, want := range map[string]string{
		"Uid": strings.Repeat(uid+" ", 4), "Gid": strings.Repeat(gid+" ", 4), "Groups": " ", "CapEff": "0000000000000000 ", "CapPrm": "0000000000000000 ",
	} {
		if got := strings.Join(strings.Fields(status[key]), " ") + " "; got != want {
			t.Errorf("%s of the VMM is %q, want %q", key, got, want)
		}
	}
	if pids := strings.Fields(status["NSpid"]); len(pids) != 2 || pids[1] != "1" {
		t.Errorf("NSpid of the VMM is %q, want it to be the first of a namespace", pids)
	}
	ours, err1 := os.Readlink("/proc/self/ns/mnt")
	its, err2 := os.Readlink(proc + "/ns/mnt")
	if err1 != nil || err2 != nil || ours == its {
		t.Errorf("mount namespaces %s, %v, and %s, %v", ours, err1, its, err2)
	}
	wantRoot(t, l, h, proc)
	wantLimits(t, l, h, proc)
}

// wantRoot sees that the VMM's root directory is the jail's and nothing else: that
// it belongs to the VM's user and nobody else can do anything in it.
func wantRoot(t *testing.T, l vmm.Launch, h vmm.Handle, proc string) {
	t.Helper()
	a, err1 := os.Stat(h.Jail.Root)
	b, err2 := os.Stat(proc + "/root")
	if err1 != nil || err2 != nil || !os.SameFile(a, b) || !strings.HasPrefix(h.Jail.Root, l.Dir+"/") {
		t.Errorf("the root directory is not %s: %v, %v", h.Jail.Root, err1, err2)
		return
	}
	if h.APISocket != filepath.Join(h.Jail.Root, l.Files.API) {
		t.Errorf("the API's socket is %s, outside of the jail", h.APISocket)
	}
	err := filepath.WalkDir(h.Jail.Root, func(path string, _ fs.DirEntry, err error) error {
		st, lerr := os.Lstat(path)
		if err != nil || lerr != nil {
			return errors.Join(err, lerr)
		}
		owner := int(st.Sys().(*syscall.Stat_t).Uid)
		if st.Mode().Perm()&0o022 != 0 && st.Mode().Type() != fs.ModeSymlink && st.Mode().Type() != fs.ModeSocket || owner != 0 && owner != l.Jail.UID {
			t.Errorf("%s in the jail is %v of user %d", path, st.Mode(), owner)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(filepath.Dir(h.Jail.Root)); err != nil || st.Mode().Perm() != 0o700 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("above the jail: %v, %v; want a directory of root's alone", st, err)
	}
}

// wantLimits sees the VMM in its cgroups, with the limits that its jail has.
func wantLimits(t *testing.T, l vmm.Launch, h vmm.Handle, proc string) {
	t.Helper()
	limits, err := os.ReadFile(proc + "/limits")
	if err != nil {
		t.Error(err)
	}
	wantFiles := l.Jail.NoFile
	if wantFiles == 0 {
		wantFiles = 2048
	}
	wantSize := "unlimited"
	if l.Jail.FileMiB > 0 {
		wantSize = strconv.FormatInt(int64(l.Jail.FileMiB)<<20, 10)
	}
	for line := range strings.Lines(string(limits)) {
		f := strings.Fields(line)
		if strings.HasPrefix(line, "Max open files") && f[4] != strconv.Itoa(wantFiles) || strings.HasPrefix(line, "Max file size") && f[4] != wantSize {
			t.Errorf("limit %q", line)
		}
	}
	if c := l.Jail.Cgroup; c.Version == 0 || len(h.Jail.Cgroups) == 0 {
		if len(h.Jail.Without) == 0 {
			t.Error("the VMM has no cgroup, and nothing says why")
		}
		return
	}
	mib := l.Jail.CgroupMiB
	if mib == 0 {
		mib = l.MemMiB + l.MemMiB/128 + 128
	}
	memory := false
	for _, dir := range h.Jail.Cgroups {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil || !slices.Contains(strings.Fields(string(procs)), strconv.Itoa(h.VMM.PID)) { // beside it KVM's threads
			t.Errorf("processes in %s: %q, %v", dir, procs, err)
		}
		for _, name := range []string{"memory.max", "memory.limit_in_bytes"} {
			if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				memory = true
				if got := strings.TrimSpace(string(data)); got != strconv.FormatInt(int64(mib)<<20, 10) {
					t.Errorf("%s of %s is %s, want %d MiB", name, dir, got, mib)
				}
			}
		}
	}
	if memory != l.Jail.Cgroup.Memory {
		t.Errorf("there is a limit of memory: %v, the host has that: %v", memory, l.Jail.Cgroup.Memory)
	}
}

// fields reads a file of "key: value" lines.
func fields(t *testing.T, path, sep string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, sep)
		m[key] = value
	}
	return m
}

// wantNoJail fails the test when something of a VM's jail is left.
func wantNoJail(t *testing.T, id, dir string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(dir, "jail")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a jail is left in %s: %v", dir, err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/"} {
		if left, err := filepath.Glob(pattern + supervisor.Token(id)); err != nil || len(left) > 0 {
			t.Errorf("cgroups left: %v, %v", left, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Errorf("read the VM's directory: %v", err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Sys().(*syscall.Stat_t).Uid >= vmm.FirstJailUID {
			t.Errorf("%s still belongs to a jail's user", e.Name())
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount in %s is left: %v", dir, err)
	}
}
