// Package host looks at the machine: KVM, memory, what is installed. It changes
// nothing and knows no VMs. Its sentences serve `mvm host status` and are the
// reasons why tests skip.
package host

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Problem is something that is wrong, and its remedy.
type Problem struct{ What, Hint string }

// KVM is what CheckKVM found.
type KVM struct {
	Usable      bool
	Paravirtual bool    // a pagetable-based KVM (kvm_pvm): only kernels built as PVM guests boot
	Denied      bool    // this user may not open the device
	Problem     Problem // why it is not usable
}

// kvmGetAPIVersion is KVM_GET_API_VERSION, _IO(0xAE, 0x00); the answer has been
// 12 since Linux 2.6.22 (Documentation/virt/kvm/api.rst).
const (
	kvmGetAPIVersion = 0xAE00
	kvmAPIVersion    = 12
)

// CheckKVM tells whether KVM really virtualises here. A device that opens proves
// nothing: a paravirtual KVM has one, and ordinary kernels hang on it.
func CheckKVM() KVM { return checkKVM("/") }

// checkKVM looks below root, which ends in a slash. What no permission would mend is
// said first.
func checkKVM(root string) KVM {
	f, err := os.OpenFile(root+"dev/kvm", os.O_RDWR, 0)
	if err == nil {
		defer func() { _ = f.Close() }()
	} else if !errors.Is(err, fs.ErrPermission) {
		return KVM{Problem: closedKVM(err, cpuVirtualises(root))}
	}
	refuse := func(what, hint string) KVM { return KVM{Problem: Problem{what, hint}} }
	if _, err := os.Stat(root + "sys/module/kvm_pvm"); err == nil {
		k := refuse("KVM is paravirtual here (kvm_pvm): only kernels built as PVM guests boot", "import such a kernel with 'mvm kernel import', use the QEMU fallback, or a machine with nested virtualisation")
		k.Paravirtual, k.Denied = true, err != nil
		return k
	}
	if !cpuVirtualises(root) {
		return refuse("/dev/kvm is there, but the CPU shows no hardware virtualisation (neither vmx nor svm)", "turn on VT-x or AMD-V in the firmware, or nested virtualisation at your provider")
	}
	if err != nil {
		return KVM{Denied: true, Problem: closedKVM(err, true)}
	}
	if root == "/" {
		if v, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion); err != nil || v != kvmAPIVersion {
			return refuse("/dev/kvm does not answer as KVM", "see 'dmesg' for messages of kvm")
		}
	}
	return KVM{Usable: true}
}

// KVMDenied is the problem of who may not open the device.
var KVMDenied = Problem{"/dev/kvm may not be opened by this user", "add the user to the group kvm with 'sudo usermod -aG kvm USER' and log in again, or run with sudo"}

// closedKVM says why /dev/kvm could not be opened.
func closedKVM(err error, virtualises bool) Problem {
	switch {
	case errors.Is(err, fs.ErrNotExist) && !virtualises:
		return Problem{"there is no /dev/kvm, and the CPU shows no hardware virtualisation", "turn on VT-x or AMD-V in the firmware, or nested virtualisation at your provider"}
	case errors.Is(err, fs.ErrNotExist):
		return Problem{"there is no /dev/kvm", "load the module with 'modprobe kvm_intel' or 'modprobe kvm_amd'"}
	case errors.Is(err, fs.ErrPermission):
		return KVMDenied
	}
	return Problem{"/dev/kvm cannot be opened: " + err.Error(), "see 'dmesg' for messages of kvm"}
}

// cpuVirtualises reports whether the CPU flags name VT-x or AMD-V. Other
// architectures than x86 have no such flag: there the device decides.
func cpuVirtualises(root string) bool {
	if runtime.GOARCH != "amd64" {
		return true
	}
	f, err := os.Open(root + "proc/cpuinfo")
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if strings.HasPrefix(s.Text(), "flags") {
			flags := strings.Fields(s.Text())
			for _, fl := range flags {
				if fl == "vmx" || fl == "svm" {
					return true
				}
			}
			return false
		}
	}
	return false
}

// MemTotalMiB returns the host's memory in MiB, 0 when it cannot be told.
func MemTotalMiB() int { return meminfo("MemTotal:") }

// MemAvailableMiB returns how much memory new programs can have, in MiB.
func MemAvailableMiB() int { return meminfo("MemAvailable:") }

func meminfo(key string) int {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			kib, _ := strconv.Atoi(f[1])
			return kib / 1024
		}
	}
	return 0
}

// IPForward returns the value of net.ipv4.ip_forward in this network namespace,
// "" when it cannot be read.
func IPForward() string {
	return firstLine("/proc/sys/net/ipv4/ip_forward")
}

// firstLine returns what a file of one line says, "" when it cannot be read.
func firstLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// Tool is a program that mvm runs, and the Debian package that has it.
type Tool struct{ Name, Package string }

// tools are the programs that some command needs.
var tools = []Tool{{"mke2fs", "e2fsprogs"}, {"qemu-img", "qemu-utils"}, {"mmdebstrap", "mmdebstrap"}}

// MissingBinaries names the programs that are not installed, with their package.
func MissingBinaries() []string {
	missing := []string{}
	for _, t := range tools {
		if !Has(t.Name) {
			missing = append(missing, t.Name+" (package "+t.Package+")")
		}
	}
	return missing
}

// Has reports whether a program is in PATH, or where root finds it.
func Has(name string) bool {
	return Find(name) != ""
}

// Find returns the path of a program in PATH or in the directories for root's
// programs, "" when there is none.
func Find(name string) string {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	return ""
}
