// Package proc deals with processes that outlive us: how to name one so that a
// recycled pid is never taken for it, how to start one detached, wait for it and
// end it. It knows nothing of VMs.
package proc

// Identity names a process for ever: a pid alone is reused, but not together
// with its start time and the boot it happened in.
type Identity struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // clock ticks since boot, field 22 of /proc/PID/stat (proc(5))
	BootID    string `json:"boot_id"`    // /proc/sys/kernel/random/boot_id
}
