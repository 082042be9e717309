package firecracker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Bounds of what Firecracker takes.
const (
	minMTU, maxMTU = 68, 65535 // Net::new_with_tap in its source
	maxStatsSec    = 65535     // 16 bits (BalloonConfig)
	hugePageMiB    = 2
	maxMetadata    = 51200 // HTTP_MAX_PAYLOAD_SIZE, which is the store's limit, too
)

func unsupported(field, why string) *mvm.Error {
	return mvm.Errorf(mvm.ErrUnsupported, "firecracker cannot honour %s: %s", field, why)
}

func invalid(field, format string, args ...any) *mvm.Error {
	return mvm.Errorf(mvm.ErrInvalid, "%s: %w", field, fmt.Errorf(format, args...))
}

// check refuses what Firecracker cannot do or would misread.
func check(l vmm.Launch) error {
	for _, c := range []func(vmm.Launch) error{checkNames, checkSize, checkBoot, checkDisks, checkNICs, checkBalloon, checkMetadata, checkJail} {
		if err := c(l); err != nil {
			return err
		}
	}
	return nil
}

func checkSize(l vmm.Launch) error {
	switch {
	case l.Accel != "" && l.Accel != "kvm":
		return unsupported("accel "+l.Accel, "it runs on KVM only").WithHint("use --hypervisor qemu")
	case l.VCPUs < 1:
		return invalid("vcpu", "%d vCPUs", l.VCPUs).WithHint("give at least 1")
	case l.VCPUs > maxVCPUs:
		return unsupported("vcpu", fmt.Sprintf("%d vCPUs are more than its %d", l.VCPUs, maxVCPUs)).
			WithHint("give at most %d, or use --hypervisor qemu", maxVCPUs)
	case l.MemMiB < 1:
		return invalid("mem", "%d MiB", l.MemMiB).WithHint("give at least 128 MiB")
	case l.HugePages && l.MemMiB%hugePageMiB != 0:
		return invalid("mem", "%d MiB are no whole number of huge pages", l.MemMiB).WithHint("give an even number of MiB")
	case l.HugePages && l.Restore != nil:
		return unsupported("huge_pages", "a snapshot's memory is mapped from its file, which has small pages").
			WithHint("restore it without huge pages")
	}
	return nil
}

// checkBoot looks at what is booted: a kernel, or a snapshot.
func checkBoot(l vmm.Launch) error {
	if r := l.Restore; r != nil {
		if !filepath.IsAbs(r.State) || !filepath.IsAbs(r.Mem) {
			return invalid("restore", "%q, %q: not absolute", r.State, r.Mem).WithHint("give the whole paths")
		}
		return nil
	}
	switch {
	case l.Kernel == "":
		return invalid("kernel", "there is none").WithHint("mvm kernel pull")
	case strings.ContainsFunc(l.Cmdline, func(r rune) bool { return r < ' ' || r > '~' }):
		return invalid("boot_args", "a character that is not printable ASCII").WithHint("write the arguments on one line")
	case len(cmdline(l.Cmdline)) > maxCmdline:
		return unsupported("boot_args", fmt.Sprintf("%d bytes are more than its %d", len(cmdline(l.Cmdline)), maxCmdline)).
			WithHint("shorten --boot-args")
	}
	return checkTemplate(l.CPUTemplate)
}

// checkNames holds the id to what validate_instance_id in Firecracker's source
// takes, and the names of files to a single element of a path.
func checkNames(l vmm.Launch) error {
	bad := strings.ContainsFunc(l.ID, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if l.ID == "" || len(supervisor.Token(l.ID)) > 64 || bad {
		return invalid("id", "%q is no instance id", l.ID).WithHint("use 1 to 60 letters, digits and hyphens")
	}
	if !filepath.IsAbs(l.Dir) || !filepath.IsAbs(l.Binary) {
		return invalid("dir or binary", "%q, %q: not absolute", l.Dir, l.Binary).WithHint("mvm binary ls shows what is installed")
	}
	names := map[string]string{"api": l.Files.API, "config": l.Files.Config, "console": l.Files.Console}
	if l.Logging {
		names["log"] = l.Files.Log
	}
	if l.Metrics {
		names["metrics"] = l.Files.Metrics
	}
	if l.Agent {
		names["agent"] = l.Files.Agent
	}
	for field, name := range names {
		if name == "" || name[0] == '-' || name != filepath.Base(name) || name == "." || name == ".." {
			return invalid("files."+field, "%q is no file name", name).WithHint("see 'mvm config ls' for the names of files")
		}
	}
	return nil
}

func checkDisks(l vmm.Launch) error {
	seen := map[string]bool{}
	for i, disk := range l.Disks {
		err := checkDisk(disk)
		if err == nil && served(disk) {
			err = checkServed(l, disk, i == 0)
		}
		if err != nil {
			return err
		}
		if seen[deviceID(disk.ID)] {
			return invalid("disk", "two have the id %q", disk.ID).WithHint("give each disk an id of its own")
		}
		seen[deviceID(disk.ID)] = true
	}
	return nil
}

func checkDisk(disk vmm.Disk) error {
	if err := checkID(deviceID(disk.ID)); err != nil {
		return err
	}
	if !filepath.IsAbs(disk.Path) {
		return invalid("disk "+disk.ID, "its path %q is not absolute", disk.Path).WithHint("give the whole path")
	}
	if disk.Format != "raw" && !served(disk) {
		return unsupported("disk "+disk.ID, fmt.Sprintf("its format is %q, and only raw and qcow2 are known", disk.Format)).
			WithHint("convert the disk to raw, or use --hypervisor qemu")
	}
	return mvm.Wrap(disk.Limit.Check(), "limit disk", disk.ID)
}

func checkNICs(l vmm.Launch) error {
	seen := map[string]bool{}
	for _, nic := range l.NICs {
		id := deviceID(nic.ID)
		if err := checkID(id); err != nil {
			return err
		}
		if seen[id] {
			return invalid("nic", "two have the id %q", id).WithHint("give each interface an id of its own")
		}
		seen[id] = true
		if nic.MTU != 0 && (nic.MTU < minMTU || nic.MTU > maxMTU) {
			return invalid("mtu", "%d of interface %s", nic.MTU, nic.ID).WithHint("give %d to %d", minMTU, maxMTU)
		}
		if err := errors.Join(nic.RX.Check(), nic.TX.Check()); err != nil {
			return mvm.Wrap(err, "limit interface", nic.ID)
		}
	}
	return nil
}

func checkBalloon(l vmm.Launch) error {
	if l.Balloon == nil {
		return nil
	}
	if l.Balloon.StatsSec < 0 || l.Balloon.StatsSec > maxStatsSec {
		return invalid("balloon", "statistics every %d s", l.Balloon.StatsSec).WithHint("give 0 to %d seconds", maxStatsSec)
	}
	return checkBalloonSize(l.Balloon.MiB, l.MemMiB)
}

func checkBalloonSize(mib, mem int) error {
	if mib < 0 || mib > mem {
		return invalid("balloon", "%d MiB in a VM of %d MiB", mib, mem).WithHint("give 0 to %d MiB", mem)
	}
	return nil
}

func checkMetadata(l vmm.Launch) error {
	if l.Metadata == nil {
		return nil
	}
	if len(l.NICs) == 0 {
		return unsupported("metadata", "its service is asked over a network interface, and there is none").
			WithHint("give the VM a network")
	}
	_, err := metadataOf(l.Metadata)
	return err
}

// metadataOf returns metadata as it is sent, and refuses what Firecracker would.
func metadataOf(data json.RawMessage) (json.RawMessage, error) {
	var b bytes.Buffer
	err := isObject(data)
	if err == nil {
		err = json.Compact(&b, data)
	}
	if err == nil && b.Len() > maxMetadata {
		err = fmt.Errorf("%d bytes are more than Firecracker's %d", b.Len(), maxMetadata)
	}
	if err != nil {
		return nil, invalid("metadata", "%w", err).WithHint("metadata is one JSON object of at most %d bytes", maxMetadata)
	}
	return b.Bytes(), nil
}

// checkTemplate looks for the sections of a CPU template
// (docs/cpu_templates/cpu-templates.md), because Firecracker would only say
// that the whole file does not match.
func checkTemplate(data json.RawMessage) error {
	if data == nil {
		return nil
	}
	err := isObject(data)
	if err == nil {
		var t struct {
			KVM   []string          `json:"kvm_capabilities"`
			CPUID []json.RawMessage `json:"cpuid_modifiers"`
			MSR   []json.RawMessage `json:"msr_modifiers"`
			Reg   []json.RawMessage `json:"reg_modifiers"`
			VCPU  []json.RawMessage `json:"vcpu_features"`
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		err = dec.Decode(&t)
	}
	if err != nil {
		return invalid("cpu_config", "no CPU template: %w", err).
			WithHint("see Firecracker's docs/cpu_templates/cpu-templates.md for the format")
	}
	return nil
}
