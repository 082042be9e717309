package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
)

// cell is a launch with files for a jail, in which nothing runs.
func cell(t *testing.T) vmm.Launch {
	t.Helper()
	testenv.Require(t, "root")
	l := jailedLaunch()
	dir := t.TempDir()
	l.ID, l.Dir = filepath.Base(filepath.Dir(dir))[:8]+"cell", dir
	l.Kernel, l.Initrd, l.Files.Config = filepath.Join(dir, "vmlinux"), filepath.Join(dir, "initrd"), "config.json"
	l.Logging, l.Metrics = false, false
	l.Disks = []vmm.Disk{
		{ID: "rootfs", Path: filepath.Join(dir, "rootfs.raw"), Format: "raw"},
		{ID: "vol-a", Path: filepath.Join(t.TempDir(), "shared.raw"), Format: "raw", ReadOnly: true},
	}
	for _, path := range []string{l.Kernel, l.Initrd, l.Disks[0].Path, l.Disks[1].Path} {
		if err := os.WriteFile(path, []byte(filepath.Base(path)), 0o640); err != nil { //nolint:gosec // as some are
			t.Fatal(err)
		}
	}
	return l
}

// owners are the users and modes of a launch's files.
func owners(t *testing.T, l vmm.Launch) map[string][2]uint32 {
	t.Helper()
	all := map[string][2]uint32{}
	for _, path := range []string{l.Kernel, l.Initrd, l.Disks[0].Path, l.Disks[1].Path} {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(path)] = [2]uint32{st.Uid, st.Mode & 0o7777}
	}
	return all
}

func lock(t *testing.T, l vmm.Launch) []supervisor.Bind {
	t.Helper()
	if err := os.Mkdir(filepath.Join(l.Dir, jailDir), 0o700); err != nil {
		t.Fatal(err)
	}
	binds, err := furnish(t.Context(), l, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	return binds
}

// What a jail has been lent is given back as it was, twice if need be; what only
// has to be read does not change hands.
func TestLendAndGiveBack(t *testing.T) {
	l := cell(t)
	before := owners(t, l)
	lock(t, l)
	lent := owners(t, l)
	uid := uint32(l.Jail.UID) //nolint:gosec // a user's number
	if lent["rootfs.raw"] != [2]uint32{uid, 0o600} || lent["shared.raw"][0] != 0 || lent["vmlinux"][0] != 0 || lent["initrd"][0] != 0 {
		t.Errorf("lent they are %v", lent)
	}
	// Its user may do what it wants with what is its own.
	if err := os.Chmod(l.Disks[0].Path, 0o4777); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Unjail(t.Context(), l.Dir, l.ID); err != nil {
			t.Fatal(err)
		}
	}
	for name, after := range owners(t, l) {
		if after != before[name] {
			t.Errorf("%s is %v, was %v", name, after, before[name])
		}
	}
	wantNoJail(t, l)
}

// The VMM's user has the VMM's root directory, and puts there what it wants.
func TestUnjailFollowsNoLink(t *testing.T) {
	l := cell(t)
	lock(t, l)
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := jailRoot(l)
	for name, target := range map[string]string{"a": precious, "b": filepath.Dir(precious), l.Files.API: precious} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, strings.Repeat("deep/", 300)), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(filepath.Join(root, l.Files.API)).Info(t.Context()); err == nil || !strings.Contains(err.Error(), "socket") {
		t.Errorf("the API at a symlink: %v", err)
	}
	if err := Unjail(t.Context(), l.Dir, l.ID); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(precious); err != nil || st.Mode() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("a file outside: %v, %v", st, err)
	}
	wantNoJail(t, l)
}

// A file that is another one by now, or that somebody else was given meanwhile, is
// nothing that was lent.
func TestGiveBackWhatIsNotLent(t *testing.T) {
	l := cell(t)
	lock(t, l)
	disk := l.Disks[0].Path
	other := l.Jail.UID + 1
	if err := os.Chown(disk, other, other); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(l.Initrd); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", l.Initrd); err != nil {
		t.Fatal(err)
	}
	if err := Unjail(t.Context(), l.Dir, l.ID); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(disk); err != nil || int(st.Sys().(*syscall.Stat_t).Uid) != other {
		t.Errorf("the disk of another VM: %v, %v", st, err)
	}
	// Lent anew, a disk of a jail that is no more is not given back to that one.
	if err := errors.Join(os.Remove(l.Initrd), os.WriteFile(l.Initrd, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	lock(t, l)
	if err := Unjail(t.Context(), l.Dir, l.ID); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(disk); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 || st.Mode() != 0o600 {
		t.Errorf("the disk: %v, %v", st, err)
	}
}

// Whoever makes a jail can be killed anywhere.
func TestUnjailHalfMade(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, l vmm.Launch){
		"nothing": func(t *testing.T, l vmm.Launch) { _ = os.RemoveAll(filepath.Join(l.Dir, jailDir)) },
		"the directory": func(t *testing.T, l vmm.Launch) {
			_ = os.RemoveAll(jailRoot(l))
			_ = os.Remove(filepath.Join(l.Dir, jailDir, ledgerFile))
		},
		"the ledger":     func(t *testing.T, l vmm.Launch) { _ = os.Chown(l.Disks[0].Path, 0, 0) },
		"not all of it":  func(t *testing.T, l vmm.Launch) { _ = os.RemoveAll(jailRoot(l)) },
		"a disk is gone": func(t *testing.T, l vmm.Launch) { _ = os.Remove(l.Disks[0].Path) },
	} {
		t.Run(name, func(t *testing.T) {
			l := cell(t)
			if name == "nothing" || name == "the directory" {
				if err := os.MkdirAll(jailRoot(l), 0o700); err != nil {
					t.Fatal(err)
				}
			} else {
				lock(t, l)
			}
			damage(t, l)
			if err := Unjail(t.Context(), l.Dir, l.ID); err != nil {
				t.Error(err)
			}
			wantNoJail(t, l)
			if st, err := os.Stat(l.Disks[0].Path); err == nil && st.Sys().(*syscall.Stat_t).Uid != 0 {
				t.Errorf("the disk is user %d's", st.Sys().(*syscall.Stat_t).Uid)
			}
		})
	}
}

// onMount does something with a file system that only its thread sees, and that ends
// with it.
func onMount(t *testing.T, kind string, flags uintptr, do func(dir string)) {
	t.Helper()
	testenv.Require(t, "root", "netns")
	dir, done := t.TempDir(), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""), unix.Mount("none", dir, kind, flags, ""))
		if err != nil {
			t.Error(err)
			return
		}
		do(dir)
	}()
	<-done
}

// Where a file system has no access control lists, what is only read is copied.
func TestFurnishWithoutACL(t *testing.T) {
	l := cell(t)
	onMount(t, "ramfs", 0, func(dir string) {
		l.Kernel = filepath.Join(dir, "vmlinux")
		err := errors.Join(os.WriteFile(l.Kernel, []byte("kernel"), 0o600), os.Mkdir(filepath.Join(l.Dir, jailDir), 0o700))
		if err != nil {
			t.Error(err)
			return
		}
		binds, err := furnish(t.Context(), l, nil)
		if err != nil {
			t.Error(err)
		}
		for _, b := range binds {
			if b.From == l.Kernel {
				t.Errorf("the kernel is bound: %v", b)
			}
		}
		path := filepath.Join(jailRoot(l), jailKernel)
		data, err := os.ReadFile(path)
		st, err2 := os.Stat(path)
		if err != nil || err2 != nil || string(data) != "kernel" || st.Mode() != 0o400 || int(st.Sys().(*syscall.Stat_t).Uid) != l.Jail.UID {
			t.Errorf("the copy has %q, %v, %v, %v", data, err, st, err2)
		}
		if err := Unjail(t.Context(), l.Dir, l.ID); err != nil {
			t.Error(err)
		}
	})
}

// The jailer makes devices and executes a program in the VM's directory.
func TestCheckJail(t *testing.T) {
	for flags, want := range map[uintptr]string{0: "", unix.MS_NODEV: "nodev", unix.MS_NOEXEC: "noexec", unix.MS_NOSUID: ""} {
		onMount(t, "tmpfs", flags, func(dir string) {
			err := CheckJail(filepath.Join(dir, "not", "yet"))
			if (err != nil) != (want != "") || err != nil && (!strings.Contains(err.Error(), want) || mvm.HintOf(err) == "") {
				t.Errorf("mounted with flags %#x: %v, want %q", flags, err, want)
			}
		})
	}
}

func TestMakeCgroups(t *testing.T) {
	testenv.Require(t, "root")
	l := jailedLaunch()
	l.ID = "cgrouptest" + filepath.Base(t.TempDir())
	t.Cleanup(func() {
		if err := removeCgroups(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
	})
	l.Jail.Cgroup = HostCgroup()
	dirs, without := makeCgroups(&l)
	if l.Jail.Cgroup.Version == 0 {
		t.Skip("the host has no cgroups: ", without)
	}
	if len(dirs) == 0 || len(without) > 0 {
		t.Errorf("made %v, without %v", dirs, without)
	}
	again, _ := makeCgroups(&l) // of a start that was killed
	if len(again) != len(dirs) {
		t.Errorf("made again: %v", again)
	}
	for range 2 { // also when the VM's directory was removed before
		if err := Unjail(t.Context(), "/nonexistent", l.ID); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	l.Jail.Cgroup = vmm.Cgroup{Version: 3, Memory: true}
	if dirs, without := makeCgroups(&l); len(dirs) > 0 || len(without) != 2 || l.Jail.Cgroup != (vmm.Cgroup{}) {
		t.Errorf("of a version that is none: %v, %v, %+v", dirs, without, l.Jail.Cgroup)
	}
}

func TestMapped(t *testing.T) {
	for table, want := range map[string]bool{
		"         0          0 4294967295\n": true, "0 100000 65536\n": false, "": false,
		"0 1000 1\n1879048192 1879048192 65536\n": true, "0 0 1879048193\n": false, "x\n": false,
	} {
		if got := mapped(table); got != want {
			t.Errorf("%q: %v", table, got)
		}
	}
}
