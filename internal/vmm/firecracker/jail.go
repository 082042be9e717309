package firecracker

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// A jailed VM's directory has a directory of root's, jail, in which the jailer
// makes the VMM's root directory. That one belongs to the VM's own user: nothing in
// it is trusted. Disks, kernel, logs and the like stay where they are; they are
// bound to names in it, in a mount namespace that ends with the VMM. The sockets
// are all that the host opens there.
const jailDir = "jail"

// Names in the VMM's root directory of what has another one outside.
const (
	jailKernel = "kernel"
	jailInitrd = "initrd"
)

const (
	// overheadMiB is what the VMM itself may take beyond the guest's memory, and
	// overheadShare what page tables may, its own and KVM's: 8 bytes each for 4 KiB.
	overheadMiB   = 128
	overheadShare = 128
	// maxThreads bounds vCPUs, devices and the kernel's workers for io_uring.
	maxThreads = 512
	// defaultNoFile is the jailer's own (NO_FILE in its source).
	defaultNoFile = 2048
)

// jailRoot returns the VMM's root directory: the jailer makes
// BASE/PROGRAM/ID/root. PROGRAM has its symlinks resolved, so l.Binary has to be
// none.
func jailRoot(l vmm.Launch) string {
	return filepath.Join(l.Dir, jailDir, filepath.Base(l.Binary), supervisor.Token(l.ID), "root")
}

// inside is a launch as it looks from within the VMM's root directory, which is
// its working directory too.
func inside(l vmm.Launch) vmm.Launch {
	if l.Kernel != "" {
		l.Kernel = jailKernel
	}
	if l.Initrd != "" {
		l.Initrd = jailInitrd
	}
	if l.Restore != nil {
		l.Restore = &vmm.Restore{State: jailState, Mem: jailMem, Resume: l.Restore.Resume}
	}
	return l
}

// seen is a launch as its VMM sees it.
func seen(l vmm.Launch) vmm.Launch {
	if l.Jail != nil {
		return inside(l)
	}
	return l
}

// rootOf is the VMM's working directory.
func rootOf(l vmm.Launch) string {
	if l.Jail != nil {
		return jailRoot(l)
	}
	return l.Dir
}

// jailArgv puts the jailer before Firecracker's command line. Without --new-pid-ns:
// the supervisor starts it in a new pid namespace. The jailer adds --id itself.
func jailArgv(l vmm.Launch, argv []string) []string {
	j := l.Jail
	out := []string{
		j.Jailer, "--id", supervisor.Token(l.ID), "--exec-file", l.Binary, "--uid", strconv.Itoa(j.UID), "--gid", strconv.Itoa(j.GID),
		"--chroot-base-dir", filepath.Join(l.Dir, jailDir),
	}
	if limits := cgroupLimits(l); len(limits) > 0 {
		out = append(out, "--cgroup-version", strconv.Itoa(j.Cgroup.Version), "--parent-cgroup", cgroupParent)
		for _, limit := range limits {
			out = append(out, "--cgroup", limit.File+"="+limit.Value)
		}
	}
	out = append(out, "--resource-limit", "no-file="+strconv.Itoa(orDefault(j.NoFile, defaultNoFile)))
	if j.FileMiB > 0 {
		out = append(out, "--resource-limit", "fsize="+strconv.FormatInt(int64(j.FileMiB)<<20, 10))
	}
	out = append(out, "--")
	return append(out, argv[3:]...) // without program, --id and the id
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// checkJail refuses a jail that would be none, and names that would be in each
// other's way in it.
func checkJail(l vmm.Launch) error {
	j := l.Jail
	if j == nil {
		return nil
	}
	const off = "leave the jailer off: --no-jailer"
	switch {
	case !filepath.IsAbs(j.Jailer):
		return invalid("jailer", "%q is not absolute", j.Jailer).WithHint(off)
	case j.UID <= 0 || j.GID <= 0 || j.UID > maxID || j.GID > maxID:
		return invalid("jailer", "user %d and group %d: both have to be others than root's", j.UID, j.GID).WithHint(off)
	case j.CgroupMiB != 0 && j.CgroupMiB < l.MemMiB:
		return invalid("jailer", "a limit of %d MiB for a guest of %d MiB", j.CgroupMiB, l.MemMiB).WithHint("leave the limit out")
	case j.NoFile < 0 || j.FileMiB < 0:
		return invalid("jailer", "a limit below 0").WithHint("leave the limit out")
	case j.Cgroup.Version < 0 || j.Cgroup.Version > 2:
		return invalid("jailer", "cgroups of version %d", j.Cgroup.Version).WithHint(off)
	}
	return checkJailNames(l)
}

const maxID = 1<<31 - 1

func checkJailNames(l vmm.Launch) error {
	program := filepath.Base(l.Binary)
	taken := map[string]string{ // by whom
		"dev": "the jailer", "run": "the jailer", "old_root": "the jailer", "sys": "the jailer", program: "the program", program + ".pid": "the jailer",
	}
	names := map[string]string{
		"kernel": jailKernel, "initrd": jailInitrd, "files.api": l.Files.API, "files.config": l.Files.Config,
		"restore.state": jailState, "restore.mem": jailMem, "snapshot": jailStage, "metadata": metadataFile,
	}
	if l.Agent {
		names["files.agent"] = l.Files.Agent
	}
	if l.Logging {
		names["files.log"] = l.Files.Log + pipeSuffix
	}
	if l.Metrics {
		names["files.metrics"] = l.Files.Metrics + pipeSuffix
	}
	for _, d := range l.Disks {
		first, _, _ := strings.Cut(diskName(l.Dir, d), "/")
		if served(d) {
			first = socketName(d)
		}
		names["disk "+d.ID] = first
	}
	for field, name := range names {
		if by := taken[name]; by != "" {
			return invalid(field, "%q is the name of another file of the VM: %s", name, by).WithHint("see 'mvm config ls' for the names of files")
		}
		taken[name] = field
	}
	return nil
}

// describeJail is what a handle says of a launch's jail.
func describeJail(l vmm.Launch, cgroups, without []string) *vmm.Jailed {
	if cgroups == nil {
		cgroups = []string{}
	}
	if without == nil {
		without = []string{}
	}
	return &vmm.Jailed{UID: l.Jail.UID, GID: l.Jail.GID, Root: jailRoot(l), Cgroups: cgroups, Without: without}
}

// notRoot refuses a jail for somebody who cannot make one.
func notRoot(euid int) error {
	if euid == 0 {
		return nil
	}
	return unsupported("jailer", fmt.Sprintf("user %d cannot make a jail", euid)).WithHint("run it as root, or leave the jailer off: --no-jailer")
}
