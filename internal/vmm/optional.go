package vmm

import (
	"context"
	"encoding/json"
)

// The optional abilities of a Machine, found by type assertion. Each has a bit in
// Capabilities that says the same of the driver.

// Snapshotter is a Machine whose memory and devices can be written to files.
type Snapshotter interface {
	// Snapshot writes the VM, whose vCPUs have to be paused and stay so. Neither
	// file may exist; on error, cancel included, neither is left. Both are made
	// with mode 0600: memory holds whatever secrets the guest has.
	Snapshot(ctx context.Context, to SnapshotFiles) error
}

// SnapshotFiles are the two files of a snapshot. Disks are not part of it.
type SnapshotFiles struct {
	State string // devices and vCPUs, in the VMM's own format
	Mem   string // the guest's memory
	Diff  bool   // only memory that changed since the last snapshot; needs Launch.TrackDirty
}

// Restore says from what Start continues a VM, in place of booting its kernel.
// Number, order and kind of the devices in the Launch have to be those of the VM
// that was written; disks, taps, MAC-independent names and sockets are the
// Launch's own, whatever the files say.
type Restore struct {
	State  string
	Mem    string
	Resume bool // the vCPUs run when Start returns; else they are paused
}

// DiskHotplugger is a Machine that disks can be plugged into while it runs.
type DiskHotplugger interface {
	AttachDisk(ctx context.Context, d Disk) error
	// DetachDisk returns when the VMM has let go of the file. A guest that does
	// not release the disk within ctx gives mvm.ErrBusy, and keeps it.
	DetachDisk(ctx context.Context, id string) error
}

// Ballooner is a Machine whose guest can be asked to give memory back.
type Ballooner interface {
	SetBalloon(ctx context.Context, mib int) error // what the guest is to give up
	BalloonStats(ctx context.Context) (BalloonStats, error)
}

// Balloon asks for a balloon device.
type Balloon struct {
	MiB          int  `json:"mib"`            // what the guest is to give up from the start
	DeflateOnOOM bool `json:"deflate_on_oom"` // the guest may take it back rather than kill processes
	StatsSec     int  `json:"stats_sec"`      // seconds between statistics; 0 for none
}

// BalloonStats is what is known of a balloon. What the guest has not told is -1.
type BalloonStats struct {
	TargetMiB      int   `json:"target_mib"`
	ActualMiB      int   `json:"actual_mib"`
	FreeBytes      int64 `json:"free_bytes"`
	TotalBytes     int64 `json:"total_bytes"`
	AvailableBytes int64 `json:"available_bytes"`
}

// RateLimiter is a Machine whose disks can be bounded while it runs. A zero limit
// takes the bound away.
type RateLimiter interface {
	LimitDisk(ctx context.Context, id string, limit RateLimit) error
}

// NICLimiter is a Machine whose interfaces can be bounded while it runs; rx and tx
// are as the guest sees them.
type NICLimiter interface {
	LimitNIC(ctx context.Context, id string, rx, tx RateLimit) error
}

// RateLimit bounds a device. Zero does not bound.
type RateLimit struct {
	BytesPerSec int64 `json:"bytes_per_sec"`
	OpsPerSec   int64 `json:"ops_per_sec"` // requests of a disk, packets of an interface
	BurstBytes  int64 `json:"burst_bytes"` // once, on top
}

// MetadataHolder is a Machine with a metadata service that its guest can ask
// (Firecracker's MMDS, version 2).
type MetadataHolder interface {
	SetMetadata(ctx context.Context, object json.RawMessage) error // one JSON object, replaces all
	Metadata(ctx context.Context) (json.RawMessage, error)
}

// Metered is a Machine that writes metrics to Files.Metrics.
type Metered interface {
	FlushMetrics(ctx context.Context) error
}

// Jail says how a VMM is locked up. Its process has a user, a root directory, a
// pid namespace and a cgroup of its own.
type Jail struct {
	Jailer    string // the jailer's binary, of the VMM's version
	UID, GID  int    // not root's, and of no other VM
	CgroupMiB int    // limit of memory; 0 takes the guest's memory and 128 MiB
	NoFile    int    // limit of open files; 0 takes 2048
	FileMiB   int    // limit of a file's size; 0 for none
	Cgroup    Cgroup // which limits the host can hold
}
