package host

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Cores returns how many CPUs this process may use, which is at most what the
// machine has.
func Cores() int { return runtime.NumCPU() }

// CgroupVersion returns 2 where the unified hierarchy is mounted at its usual
// place, 1 where that of version 1 is, a hybrid of both included, and 0 without
// either (Documentation/admin-guide/cgroup-v2.rst).
func CgroupVersion() int { return cgroupVersion("/") }

func cgroupVersion(root string) int {
	if _, err := os.Stat(root + "sys/fs/cgroup/cgroup.controllers"); err == nil {
		return 2
	}
	if entries, err := os.ReadDir(root + "sys/fs/cgroup"); err == nil && len(entries) > 0 {
		return 1
	}
	return 0
}

// NestedVirt tells whether KVM lets guests virtualise in their turn (Documentation/
// virt/kvm/x86/running-nested-guests.rst). It says nothing of whether KVM itself
// works: that is CheckKVM's.
func NestedVirt() bool { return nestedVirt("/") }

func nestedVirt(root string) bool {
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		data, err := os.ReadFile(root + "sys/module/" + module + "/parameters/nested")
		if err == nil && len(data) > 0 && (data[0] == 'Y' || data[0] == '1') {
			return true
		}
	}
	return false
}

// CheckNetNS tells why this process cannot make network namespaces; the zero
// Problem says that it can. It takes CAP_SYS_ADMIN (unshare(2)), which root in a
// container need not have.
func CheckNetNS() Problem { return checkNetNS("/", os.Geteuid() == 0) }

// capSysAdmin is the bit of CAP_SYS_ADMIN (linux/capability.h).
const capSysAdmin = 21

func checkNetNS(root string, privileged bool) Problem {
	if !privileged {
		return Problem{"making network namespaces needs root", "run it with sudo"}
	}
	if _, err := os.Stat(root + "proc/self/ns/net"); err != nil {
		return Problem{"the kernel has no network namespaces", "use a kernel with CONFIG_NET_NS"}
	}
	data, _ := os.ReadFile(root + "proc/self/status")
	for line := range strings.Lines(string(data)) {
		if caps, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if bits, err := strconv.ParseUint(strings.TrimSpace(caps), 16, 64); err == nil && bits>>capSysAdmin&1 == 0 {
				return Problem{"root may not make network namespaces in this container", "give the container CAP_SYS_ADMIN"}
			}
		}
	}
	return Problem{}
}

// CheckUserNS tells why a user without privileges cannot make user namespaces; the
// zero Problem says that nothing is known to be in the way. Root can where the
// kernel has any.
func CheckUserNS() Problem { return checkUserNS("/", os.Geteuid() == 0) }

func checkUserNS(root string, privileged bool) Problem {
	value := func(name string) string { return firstLine(root + "proc/sys/" + name) }
	switch {
	case value("user/max_user_namespaces") == "0":
		return Problem{"user namespaces are switched off", "allow some with 'sysctl user.max_user_namespaces=1000'"}
	case value("user/max_user_namespaces") == "":
		return Problem{"the kernel has no user namespaces", "use a kernel with CONFIG_USER_NS"}
	case privileged:
	case value("kernel/unprivileged_userns_clone") == "0":
		return Problem{"user namespaces are root's only", "allow them with 'sysctl kernel.unprivileged_userns_clone=1'"}
	case value("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return Problem{"AppArmor restricts user namespaces to root", "allow them with 'sysctl kernel.apparmor_restrict_unprivileged_userns=0'"}
	}
	return Problem{}
}
