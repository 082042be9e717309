//go:build !amd64

package qemu

// hostTSC returns 0: there is no time stamp counter that an x86 guest would see.
func hostTSC() uint64 { return 0 }
