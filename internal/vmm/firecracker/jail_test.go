package firecracker

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// enjail asks for a jail if the bench has a jailer.
func (b bench) enjail(l *vmm.Launch) {
	if b.jailer == "" {
		return
	}
	id := vmm.FirstJailUID + rand.IntN(vmm.JailUIDs)
	l.Jail = &vmm.Jail{Jailer: b.jailer, UID: id, GID: id, FileMiB: 1024, Cgroup: HostCgroup()}
}

// jailedBench is the fake in a jail that the jailer's double makes.
func jailedBench(t *testing.T) bench {
	testenv.Require(t, "root", "netns")
	b := fakeBench(t)
	b.binary, b.jailer = fakevmm.InstallJailed(t)
	return b
}

// realJailer is the one beside the real Firecracker.
func realJailer(t *testing.T) string {
	testenv.Require(t, "root", "firecracker")
	jailer := filepath.Join(filepath.Dir(os.Getenv(testenv.FirecrackerVariable)), "jailer")
	if _, err := os.Stat(jailer); err != nil {
		t.Skip(err)
	}
	return jailer
}

// fakeByTheJailer is the fake in a jail that the real jailer makes.
func fakeByTheJailer(t *testing.T) bench {
	jailer := realJailer(t)
	if fakevmm.Dynamic() {
		t.Skip("the test binary has libraries, which it would miss in a jail: build it with CGO_ENABLED=0")
	}
	b := jailedBench(t)
	b.jailer, b.blind = jailer, true
	return b
}

func realJailedBench(t *testing.T) bench {
	b := realBench(t)
	b.jailer = realJailer(t)
	return b
}

func TestFakeJailed(t *testing.T)      { jailedBench(t); suite(t, jailedBench) }
func TestFakeByTheJailer(t *testing.T) { fakeByTheJailer(t); suite(t, fakeByTheJailer) }
func TestRealJailed(t *testing.T)      { realJailedBench(t); suite(t, realJailedBench) }

func TestFakeJailedConformance(t *testing.T) {
	jailedBench(t)
	kvm := func() host.KVM { return host.KVM{Usable: true} }
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture { return jailedBench(t).fixture(t, kvm) })
}

func TestFakeByTheJailerConformance(t *testing.T) {
	fakeByTheJailer(t)
	kvm := func() host.KVM { return host.KVM{Usable: true} }
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture { return fakeByTheJailer(t).fixture(t, kvm) })
}

func TestRealJailedConformance(t *testing.T) {
	realJailedBench(t)
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture { return realJailedBench(t).fixture(t, nil) })
}

// wantNoJail checks that a failed start left nothing of a jail.
func wantNoJail(t *testing.T, l vmm.Launch) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(l.Dir, jailDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a jail is left: %v", err)
	}
	for _, dir := range mountedCgroups().dirs(l.ID) {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the cgroup %s is left: %v", dir, err)
		}
	}
}

func jailedLaunch() vmm.Launch {
	l := launch()
	l.Jail = &vmm.Jail{Jailer: "/c/bin/jailer", UID: 1879048200, GID: 1879048201}
	return l
}

const jailedBegin = "/c/bin/jailer --id mvm-0123456789abcdef --exec-file /c/bin/firecracker --uid 1879048200 --gid 1879048201" +
	" --chroot-base-dir /c/vms/0123456789abcdef/jail"

const jailedEnd = " -- --api-sock firecracker.api.socket --config-file firecracker.json --log-path firecracker.log.pipe --level Warning --show-level" +
	" --metrics-path firecracker.metrics.pipe --enable-pci"

func TestRenderJailed(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*vmm.Jail)
		want   string
	}{
		"no cgroup": {func(*vmm.Jail) {}, " --resource-limit no-file=2048"},
		"version 2": {
			func(j *vmm.Jail) { j.Cgroup = vmm.Cgroup{Version: 2, Memory: true, PIDs: true} },
			" --cgroup-version 2 --parent-cgroup mvm --cgroup memory.max=675282944 --cgroup pids.max=512 --resource-limit no-file=2048",
		},
		"version 1, all limits": {
			func(j *vmm.Jail) {
				j.Cgroup, j.CgroupMiB, j.NoFile, j.FileMiB = vmm.Cgroup{Version: 1, Memory: true, PIDs: true}, 1024, 100, 4096
			},
			" --cgroup-version 1 --parent-cgroup mvm --cgroup memory.limit_in_bytes=1073741824 --cgroup pids.max=512" +
				" --resource-limit no-file=100 --resource-limit fsize=4294967296",
		},
		"threads only": {
			func(j *vmm.Jail) { j.Cgroup = vmm.Cgroup{Version: 2, PIDs: true} },
			" --cgroup-version 2 --parent-cgroup mvm --cgroup pids.max=512 --resource-limit no-file=2048",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := jailedLaunch()
			tt.change(l.Jail)
			r, err := (&Driver{}).Render(l)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Fields(jailedBegin+tt.want+jailedEnd), r.Argv); d != "" {
				t.Errorf("argv differs:\n%s", d)
			}
		})
	}
}

// The configuration is the unjailed one but for the two files that are not named
// relative to the VM's directory; the sockets are in the jail.
func TestRenderJailedConfig(t *testing.T) {
	plain, err1 := (&Driver{}).Render(launch())
	r, err2 := (&Driver{}).Render(jailedLaunch())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("/c/kernels/vmlinux", "kernel", "/c/vms/0123456789abcdef/initrd", "initrd").Replace(string(plain.Config))
	if d := cmp.Diff(want, string(r.Config)); d != "" {
		t.Errorf("the configuration differs:\n%s", d)
	}
	root := "/c/vms/0123456789abcdef/jail/firecracker/mvm-0123456789abcdef/root"
	if r.APISocket != root+"/firecracker.api.socket" || r.Guest.Path != root+"/agent.sock" || r.Dir != plain.Dir {
		t.Errorf("the sockets are %s and %s, the directory %s", r.APISocket, r.Guest.Path, r.Dir)
	}
}

func TestRenderJailedRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		field  string
		change func(*vmm.Launch)
	}{
		"a relative jailer":    {"jailer", func(l *vmm.Launch) { l.Jail.Jailer = "jailer" }},
		"no jailer":            {"jailer", func(l *vmm.Launch) { l.Jail.Jailer = "" }},
		"root":                 {"user 0", func(l *vmm.Launch) { l.Jail.UID = 0 }},
		"root's group":         {"group 0", func(l *vmm.Launch) { l.Jail.GID = 0 }},
		"no user":              {"user", func(l *vmm.Launch) { l.Jail.UID = -1 }},
		"too great a user":     {"user", func(l *vmm.Launch) { l.Jail.UID = 1 << 31 }},
		"less than the guest":  {"limit", func(l *vmm.Launch) { l.Jail.CgroupMiB = l.MemMiB - 1 }},
		"less than no files":   {"limit", func(l *vmm.Launch) { l.Jail.NoFile = -1 }},
		"less than nothing":    {"limit", func(l *vmm.Launch) { l.Jail.FileMiB = -1 }},
		"cgroups to come":      {"version 3", func(l *vmm.Launch) { l.Jail.Cgroup.Version = 3 }},
		"a disk called dev":    {"dev", func(l *vmm.Launch) { l.Disks[0].Path = l.Dir + "/dev/x" }},
		"a disk called kernel": {"kernel", func(l *vmm.Launch) { l.Disks[0].Path = l.Dir + "/kernel" }},
		"two of a name":        {"firecracker.log", func(l *vmm.Launch) { l.Files.Metrics = l.Files.Log }},
		"a socket as program":  {"firecracker", func(l *vmm.Launch) { l.Files.API = "firecracker" }},
		"its file of the pid":  {"firecracker.pid", func(l *vmm.Launch) { l.Files.Agent = "firecracker.pid" }},
	} {
		l := jailedLaunch()
		tt.change(&l)
		_, err := (&Driver{}).Render(l)
		if !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(err.Error(), tt.field) || mvm.HintOf(err) == "" {
			t.Errorf("%s: got %v (hint %q)", name, err, mvm.HintOf(err))
		}
	}
	if err := notRoot(1000); !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" {
		t.Errorf("as a user: %v", err)
	}
}

func TestParseCgroupMounts(t *testing.T) {
	all := func(string) string { return "cpuset cpu memory pids\n" }
	none := func(string) string { return "\n" }
	const v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
	const v1 = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n"
	const hybrid = v1 + "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
	for name, tt := range map[string]struct {
		table       string
		controllers func(string) string
		version     int
		memory      string
		dirs        int
	}{
		"version 2":         {v2 + v2, all, 2, "/sys/fs/cgroup", 1},
		"version 1":         {v1, none, 1, "/sys/fs/cgroup/memory", 2},
		"both":              {hybrid, none, 1, "/sys/fs/cgroup/memory", 3},
		"not delegated":     {v2, none, 0, "", 1},
		"none":              {"proc /proc proc rw 0 0\nx\n", all, 0, "", 0},
		"version 1 for cpu": {"cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", none, 0, "", 0},
	} {
		m := parseCgroupMounts(tt.table, tt.controllers)
		if got := m.base(m.version, "memory"); m.version != tt.version || got != tt.memory || len(m.dirs("x")) != tt.dirs {
			t.Errorf("%s: version %d, memory at %q, %q", name, m.version, got, m.dirs("x"))
		}
	}
}

// A disk that is plugged in may be larger than those that the VM was started with.
func TestJailedDiskBeyondTheLimit(t *testing.T) {
	b := jailedBench(t)
	l := b.launch(t)
	l.PCI, l.Jail.FileMiB = true, 2
	v := b.start(t, l)
	limit := func() uint64 {
		n, err := fileLimit(v.Handle().VMM.PID)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	mayRaise := unix.Prlimit(v.Handle().VMM.PID, unix.RLIMIT_FSIZE, nil, &unix.Rlimit{}) == nil
	var plugged []vmm.Disk
	h := v.Machine.(vmm.DiskHotplugger)
	for i, size := range []int64{1 << 20, 8 << 20, 4 << 20} {
		d := vmm.Disk{ID: "vol-" + strconv.Itoa(i), Path: filepath.Join(t.TempDir(), "disk"), Format: "raw"}
		if err := errors.Join(os.WriteFile(d.Path, nil, 0o600), os.Truncate(d.Path, size)); err != nil {
			t.Fatal(err)
		}
		before := limit()
		err := h.AttachDisk(t.Context(), d)
		if !mayRaise && uint64(size) > before {
			if !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" {
				t.Errorf("a disk of %d bytes without the right to raise the limit: %v", size, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := limit(); got != max(before, uint64(size)) {
			t.Errorf("with a disk of %d bytes the limit is %d, it was %d", size, got, before)
		}
		plugged = append(plugged, d)
	}
	for _, d := range plugged {
		if err := h.DetachDisk(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(d.Path); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("the disk is not given back: %v, %v", st, err)
		}
	}
}

// What stops the jailer is said in its words for people, with the way out.
func TestJailerFails(t *testing.T) {
	b := jailedBench(t)
	l := b.launch(t)
	l.Jail.Jailer = filepath.Join(t.TempDir(), "jailer")
	script := "#!/bin/sh\necho 'Failed to create /dev/kvm via mknod' >&2\necho 'Error: MknodDev(Os { code: 1 })' >&2\nexit 1\n"
	if err := os.WriteFile(l.Jail.Jailer, []byte(script), 0o700); err != nil { //nolint:gosec // it is executed
		t.Fatal(err)
	}
	m, err := newDriver(t).Start(t.Context(), l)
	if m != nil || !errors.Is(err, mvm.ErrUnavailable) || !strings.Contains(err.Error(), "the jailer failed: Failed to create /dev/kvm via mknod") || !strings.Contains(mvm.HintOf(err), "--no-jailer") {
		t.Errorf("got %v, %v (hint %q)", m, err, mvm.HintOf(err))
	}
	wantNothing(t, l)
}
