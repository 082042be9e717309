package qemu

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

const (
	maxVCPUs   = 255      // of q35 without an interrupt remapper: an APIC's id has 8 bits
	maxMemMiB  = 16 << 20 // 16 TiB; beyond it lies no host that this was tried on
	maxCmdline = 2047     // COMMAND_LINE_SIZE of x86 (arch/x86/include/asm/setup.h) less the final zero
	maxTap     = 15       // IFNAMSIZ of linux/if.h less the final zero
)

func unsupported(field, why string) *mvm.Error {
	return mvm.Errorf(mvm.ErrUnsupported, "QEMU cannot honour %s: %s", field, why)
}

func invalid(field, format string, args ...any) *mvm.Error {
	return mvm.Errorf(mvm.ErrInvalid, "%s: %w", field, fmt.Errorf(format, args...))
}

// check refuses what QEMU cannot do or would misread.
func check(l vmm.Launch) error {
	for _, c := range []func(vmm.Launch) error{checkAbilities, checkNames, checkSize, checkBoot, checkDisks, checkNICs, checkBalloon, checkRestore} {
		if err := c(l); err != nil {
			return err
		}
	}
	return nil
}

// checkAbilities refuses what only Firecracker has.
func checkAbilities(l vmm.Launch) error {
	const other = "leave it off, or use --hypervisor firecracker"
	switch {
	case given(l.CPUTemplate):
		return unsupported("cpu_config", "CPU templates are Firecracker's").WithHint(other)
	case l.Jail != nil:
		return unsupported("jailer", "the jailer starts Firecracker only").WithHint("leave the jailer off: --no-jailer")
	case l.Metrics:
		return unsupported("enable_metrics", "it writes no metrics").WithHint(other)
	case given(l.Metadata):
		return unsupported("metadata", "it has no metadata service").WithHint(other)
	case l.TrackDirty:
		return unsupported("track_dirty", "its snapshots are always full ones").WithHint("leave it off: each snapshot is complete")
	case l.Accel != "kvm" && l.Accel != "tcg":
		return unsupported("accel", fmt.Sprintf("%q is neither kvm nor tcg", l.Accel)).WithHint("see 'mvm host status'")
	}
	return nil
}

// given tells JSON that says something from none: null is what none becomes where
// it was written down.
func given(object json.RawMessage) bool { return len(object) > 0 && string(object) != "null" }

// checkNames holds the id and the names of files to what cannot be taken for
// anything else.
func checkNames(l vmm.Launch) error {
	if !word(l.ID, "-") || l.ID[0] == '-' || len(l.ID) > 64 {
		return invalid("id", "%q is no id of a VM", l.ID).WithHint("use 1 to 64 letters, digits and hyphens, the first no hyphen")
	}
	if !word(l.Name, "-_.") && l.Name != "" {
		return invalid("name", "%q is no name of a VM", l.Name).WithHint("use letters, digits, '-', '_' and '.'")
	}
	paths := map[string]string{"dir": l.Dir, "binary": l.Binary}
	if l.Kernel != "" || l.Restore == nil {
		paths["kernel"] = l.Kernel
	}
	for field, path := range paths {
		if err := checkPath(field, path); err != nil {
			return err
		}
	}
	names := map[string]string{"api": l.Files.API, "log": l.Files.Log, "console": l.Files.Console}
	if l.Agent {
		names["agent"] = l.Files.Agent
	}
	taken := map[string]bool{agentDevice: true, balloonFile: true}
	for field, name := range names {
		if name != filepath.Base(name) || !word(name, "-_.") || name[0] == '-' || name == "." || name == ".." || taken[name] {
			return invalid("files."+field, "%q is no file name of its own", name).WithHint("see 'mvm config ls' for the names of files")
		}
		taken[name] = true
	}
	return nil
}

// word reports whether s consists of ASCII letters, digits, and those in also.
func word(s, also string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune(also, r)
	})
}

func checkPath(field, path string) error {
	if !filepath.IsAbs(path) || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return invalid(field, "%q is no absolute path", path).WithHint("see 'mvm host status' for what is missing")
	}
	return nil
}

func checkSize(l vmm.Launch) error {
	switch {
	case l.VCPUs < 1:
		return invalid("vcpu", "%d vCPUs", l.VCPUs).WithHint("give at least 1")
	case l.VCPUs > maxVCPUs:
		return unsupported("vcpu", fmt.Sprintf("%d vCPUs are more than its %d", l.VCPUs, maxVCPUs)).WithHint("give at most %d", maxVCPUs)
	case l.MemMiB < 1:
		return invalid("mem", "%d MiB", l.MemMiB).WithHint("give at least 128 MiB")
	case l.MemMiB > maxMemMiB:
		return unsupported("mem", fmt.Sprintf("%d MiB are more than its %d", l.MemMiB, maxMemMiB)).WithHint("give less memory")
	case l.HugePages && l.MemMiB%2 != 0:
		return invalid("huge_pages", "%d MiB are no whole number of pages of 2 MiB", l.MemMiB).WithHint("give an even number of MiB")
	}
	return nil
}

func checkBoot(l vmm.Launch) error {
	if l.Initrd != "" {
		if err := checkPath("initrd", l.Initrd); err != nil {
			return err
		}
	}
	const room = 96 // for what cmdline adds
	switch {
	case strings.ContainsFunc(l.Cmdline, func(r rune) bool { return r < ' ' || r > '~' }):
		return invalid("boot_args", "a character that is not printable ASCII").WithHint("write the arguments on one line")
	case len(l.Cmdline) > maxCmdline-room:
		return unsupported("boot_args", fmt.Sprintf("%d bytes are more than the kernel's %d", len(l.Cmdline), maxCmdline-room)).
			WithHint("shorten --boot-args")
	}
	return nil
}

func checkDisks(l vmm.Launch) error {
	if n := len(l.Disks); n > maxDisks {
		return unsupported("disks", fmt.Sprintf("%d are more than its %d", n, maxDisks)).WithHint("attach fewer")
	}
	seen := map[string]bool{}
	for _, disk := range l.Disks {
		if seen[disk.ID] {
			return invalid("disk", "%q is no id of its own", disk.ID).WithHint("give each disk an id of its own")
		}
		seen[disk.ID] = true
		if err := checkDisk(disk); err != nil {
			return err
		}
	}
	return nil
}

func checkDisk(disk vmm.Disk) error {
	if !word(disk.ID, "-_") || len(disk.ID) > 64 {
		return invalid("disk", "%q is no id of a disk", disk.ID).WithHint("give it an id of letters, digits, '-' and '_', at most 64")
	}
	if err := checkPath("disk "+disk.ID, disk.Path); err != nil {
		return err
	}
	if disk.Format != "raw" && disk.Format != "qcow2" {
		return unsupported("disk "+disk.ID, fmt.Sprintf("its format is %q, and only raw and qcow2 are known", disk.Format)).
			WithHint("convert it with 'qemu-img convert -O raw'")
	}
	return checkLimit("disk "+disk.ID, disk.Limit)
}

func checkLimit(field string, limit vmm.RateLimit) error {
	if err := limit.Check(); err != nil {
		return mvm.Wrap(err, "limit", field)
	}
	if limit.BytesPerSec > maxRate || limit.OpsPerSec > maxRate || limit.BurstBytes > maxRate {
		return unsupported(field, fmt.Sprintf("its limit is above %d", int64(maxRate))).WithHint("give 0 for no limit")
	}
	return nil
}

func checkNICs(l vmm.Launch) error {
	if n := len(l.NICs); n > maxNICs {
		return unsupported("NICs", fmt.Sprintf("%d are more than its %d", n, maxNICs)).WithHint("attach fewer")
	}
	for _, nic := range l.NICs {
		if !word(nic.Tap, "-_.") || len(nic.Tap) > maxTap {
			return invalid("nic "+nic.ID, "%q is no name of a tap", nic.Tap).WithHint("see 'mvm network inspect'")
		}
		if mac, err := net.ParseMAC(nic.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return invalid("nic "+nic.ID, "%q is no MAC address of an interface", nic.MAC).WithHint("write it as 02:00:00:00:00:01")
		}
		if nic.RX != (vmm.RateLimit{}) || nic.TX != (vmm.RateLimit{}) {
			return unsupported("the limit of nic "+nic.ID, "it bounds no interface").
				WithHint("leave --net-limit off, or use --hypervisor firecracker")
		}
	}
	return nil
}

func checkBalloon(l vmm.Launch) error {
	if l.Balloon == nil {
		return nil
	}
	if l.Balloon.StatsSec < 0 {
		return invalid("balloon", "statistics every %d s", l.Balloon.StatsSec).WithHint("give 0 for none")
	}
	return checkBalloonSize(l.Balloon.MiB, l.MemMiB)
}

func checkBalloonSize(mib, memMiB int) error {
	if mib < 0 || mib > memMiB {
		return invalid("balloon", "%d MiB of the VM's %d", mib, memMiB).WithHint("give 0 to %d", memMiB)
	}
	return nil
}

func checkRestore(l vmm.Launch) error {
	if l.Restore == nil {
		return nil
	}
	if err := checkPath("snapshot", l.Restore.State); err != nil {
		return err
	}
	return checkPath("snapshot", l.Restore.Mem)
}
