package qemu

import (
	"os"
	"path/filepath"
)

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
