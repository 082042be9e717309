package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/run"
)

// modprobe stands for the tool: it makes and removes directories below sys/module.
type modprobe struct{ root string }

func (m modprobe) Run(_ context.Context, c run.Cmd) (run.Result, error) {
	name := m.root + "sys/module/" + c.Args[len(c.Args)-1]
	if c.Args[0] != "-r" {
		return run.Result{}, os.MkdirAll(name, 0o755)
	}
	if _, err := os.Stat(name + "/busy"); err == nil {
		return run.Result{}, &run.ExitError{Name: "modprobe", Code: 1, Stderr: "modprobe: FATAL: Module is in use."}
	}
	return run.Result{}, os.Remove(name)
}

const someGroups = "root:x:0:\nadm:x:4:syslog\nlast:x:999:"

func newMachine(t *testing.T) Machine {
	t.Helper()
	root := fakeRoot(t, map[string]string{
		"etc/group": someGroups, "etc/gshadow": "root:*::\nadm:*::syslog\nlast:!::\n", "etc/old.conf": "theirs\n",
		"proc/sys/net/ipv4/ip_forward": "0\n", "sys/module/kvm/x": "", "program": "#!/bin/true\n",
	})
	return Machine{Root: root, Runner: modprobe{root}}
}

// files are all files of a machine with mode and content.
func files(t *testing.T, m Machine) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(m.Root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b.WriteString(strings.TrimPrefix(path, m.Root) + " " + info.Mode().String())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b.WriteString(" " + string(data))
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// changes are one of each kind, and of each way in which it can have been before.
func someChanges(t *testing.T, m Machine) []Change {
	t.Helper()
	sum, err := Digest(m.Root + "program")
	if err != nil {
		t.Fatal(err)
	}
	all := []Change{
		{Setting: Setting{Sysctl, "net.ipv4.ip_forward"}, New: State{Data: "1"}},
		{Setting: Setting{Dir, "/usr/lib"}, New: State{Mode: 0o755}},
		{Setting: Setting{File, "/usr/lib/new.conf"}, New: State{Data: "ours\n", Mode: 0o440}},
		{Setting: Setting{File, "/etc/old.conf"}, New: State{Data: "ours\n", Mode: 0o644}},
		{Setting: Setting{Symlink, "/usr/lib/link"}, New: State{Data: "/etc/old.conf"}},
		{Setting: Setting{Program, "/usr/lib/tool"}, New: State{Data: sum, Mode: 0o755}, From: m.Root + "program"},
		{Setting: Setting{Group, "mvm"}, New: State{Data: "998"}},
		{Setting: Setting{Module, "tun"}, New: State{}},
	}
	for i := range all {
		c := &all[i]
		c.New.Exists = true
		if c.Old, err = m.Observe(c.Setting); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestSettingsComeAndGo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: files are given to root, which needs root")
	}
	m := newMachine(t)
	if err := os.Mkdir(m.Root+"usr", 0o755); err != nil {
		t.Fatal(err)
	}
	before := files(t, m)
	all := someChanges(t, m)
	for _, c := range all {
		for range 2 {
			if err := m.Apply(t.Context(), c); err != nil {
				t.Fatalf("%s: %v", c.Setting, err)
			}
		}
		if now, err := m.Observe(c.Setting); err != nil || now != c.New {
			t.Errorf("%s is %+v, %v; want %+v", c.Setting, now, err, c.New)
		}
	}
	if gid, err := m.FreeGroupID(); err != nil || gid != "997" {
		t.Errorf("the next free group is %s, %v", gid, err)
	}
	for i := len(all) - 1; i >= 0; i-- {
		for range 2 {
			if err := m.Restore(t.Context(), all[i]); err != nil {
				t.Fatalf("%s: %v", all[i].Setting, err)
			}
		}
	}
	// The group file now ends in a line end, which is all the difference.
	if after := strings.Replace(files(t, m), "last:x:999:\n\n", "last:x:999:\n", 1); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
}

// What somebody has changed since is not touched.
func TestRestoreLeavesWhatIsNotOurs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: files are given to root, which needs root")
	}
	m := newMachine(t)
	c := Change{Setting: Setting{File, "/etc/old.conf"}, New: State{Exists: true, Data: "ours\n", Mode: 0o644}}
	var err error
	if c.Old, err = m.Observe(c.Setting); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"content": func() error { return os.WriteFile(m.Root+"etc/old.conf", []byte("mine\n"), 0o600) },
		"mode":    func() error { return os.Chmod(m.Root+"etc/old.conf", 0o600) },
		"gone":    func() error { return os.Remove(m.Root + "etc/old.conf") },
	} {
		t.Run(name, func(t *testing.T) {
			if err := m.Apply(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			before := files(t, m)
			if what, err := m.Outlook(c); err != nil || what != IsChanged {
				t.Errorf("outlook is %q, %v", what, err)
			}
			if err := m.Restore(t.Context(), c); err != nil {
				t.Error(err)
			}
			if after := files(t, m); after != before {
				t.Errorf("it was\n%s\nand is\n%s", before, after)
			}
		})
	}
}

// A symlink in the place of a file is no file of ours, and is not followed.
func TestASymlinkInTheWay(t *testing.T) {
	m := newMachine(t)
	if err := os.Symlink("old.conf", m.Root+"etc/new.conf"); err != nil {
		t.Fatal(err)
	}
	if st, err := m.Observe(Setting{File, "/etc/new.conf"}); err == nil {
		t.Errorf("it is %+v", st)
	}
}

// A module that is in use stays, and is no error.
func TestABusyModule(t *testing.T) {
	m := newMachine(t)
	c := Change{Setting: Setting{Module, "tun"}, New: State{Exists: true}}
	if err := m.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Root+"sys/module/tun/busy", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(t.Context(), c); err != nil {
		t.Error(err)
	}
}

// Groups are not written while another program has the lock of lckpwdf(3).
func TestGroupsAreLocked(t *testing.T) {
	m := newMachine(t)
	f, err := os.OpenFile(m.Root+"etc/.pwd.lock", os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	// An open file description's lock, for one of this process would not be in its way.
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = m.putGroup(ctx, "mvm", State{Exists: true, Data: "998"})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if data, _ := os.ReadFile(m.Root + "etc/group"); string(data) != someGroups {
		t.Errorf("the groups are %q", data)
	}
}

func TestLimits(t *testing.T) {
	root := fakeRoot(t, map[string]string{
		"proc/sys/kernel/pid_max": "4194304\n", "proc/sys/kernel/threads-max": "1000\n", "proc/loadavg": "0.1 0.1 0.1 2/300 77\n",
		"proc/sys/fs/file-nr": "1024\t0\t65536\n", "proc/self/cgroup": "0::/user/me\n",
		"sys/fs/cgroup/user/pids.max": "400\n", "sys/fs/cgroup/user/pids.current": "390\n", "sys/fs/cgroup/user/me/pids.max": "max\n",
		"sys/devices/system/node/node0/x": "", "sys/devices/system/node/node1/x": "",
		"proc/cpuinfo": "processor\t: 0\nmodel name\t: A fast one\n",
	})
	if u := tasks(root); u.Free() != 10 || u.Max != 400 {
		t.Errorf("tasks: %+v", u)
	}
	if u := openFiles(root); u.Free() != 64512 {
		t.Errorf("files: %+v", u)
	}
	if n := numaNodes(root); n != 2 {
		t.Errorf("%d nodes", n)
	}
	if m := cpuModel(root); m != "A fast one" {
		t.Errorf("the CPU is %q", m)
	}
	if u := tasks(fakeRoot(t, map[string]string{"proc/sys/kernel/pid_max": "1000\n"})); u.Free() != 1000 {
		t.Errorf("without a cgroup: %+v", u)
	}
	if DiskFreeMiB("/nonexistent/x") <= 0 || Release() == "" {
		t.Error("this host has no disk or no kernel")
	}
}

func TestLoadable(t *testing.T) {
	root := fakeRoot(t, map[string]string{"modules.dep": "kernel/arch/x86/kvm/kvm-amd.ko.zst: kernel/virt/lib/irqbypass.ko.zst\nkernel/drivers/net/tun.ko:\n"})
	for name, want := range map[string]bool{"kvm_amd": true, "tun": true, "irqbypass": false, "kvm": false} {
		if loadable(root+"modules.dep", name) != want {
			t.Errorf("%s: not %v", name, want)
		}
	}
	if loadable(root+"nothing", "tun") {
		t.Error("a kernel without modules has some")
	}
}
