package qemu

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
)

// hugePool is where the kernel says how many pages of 2 MiB are free
// (Documentation/admin-guide/mm/hugetlbpage.rst).
const hugePool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"

func freeHugePages() int {
	data, err := os.ReadFile(hugePool)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return -1
	}
	return n
}

// checkPool refuses a VM that the host's pool of huge pages has no room for.
func (d *Driver) checkPool(memMiB int) error {
	need, free := memMiB/2, d.opts.FreeHuge()
	switch {
	case free < 0:
		return mvm.Errorf(mvm.ErrUnavailable, "huge_pages: the host's kernel has no pages of 2 MiB").WithHint("leave --huge-pages off")
	case free < need:
		return mvm.Errorf(mvm.ErrUnavailable, "huge_pages: the VM needs %d pages of 2 MiB, and %d are free", need, free).
			WithHint("make the pool larger ('sysctl vm.nr_hugepages=…'), or leave --huge-pages off")
	}
	return nil
}

// hostSeccomp reports whether the kernel has seccomp filters (seccomp(2)).
func hostSeccomp() bool {
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	return err == nil
}

// findQboot returns where the small firmware lies that QEMU has for its microvm
// machine (https://github.com/bonzini/qboot), in the data directory beside the
// binary or in the usual one.
func findQboot(binary string) string {
	for _, share := range []string{filepath.Join(filepath.Dir(filepath.Dir(binary)), "share"), "/usr/share"} {
		path := filepath.Join(share, "qemu", "qboot.rom")
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
			return path
		}
	}
	return ""
}
