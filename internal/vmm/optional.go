package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
)

// The optional abilities of a Machine, found by type assertion. Each has a bit in
// Capabilities that says the same of the driver.

// Snapshotter is a Machine whose memory and devices can be written to files.
type Snapshotter interface {
	// Snapshot writes the VM, whose vCPUs have to be paused and stay so: one that
	// runs gives mvm.ErrConflict. Neither file may exist, else mvm.ErrExists; on
	// error, cancel included, neither is left. Both are made with mode 0600: memory
	// holds whatever secrets the guest has. A driver that knows no Diff, and a VM
	// without Launch.TrackDirty, give mvm.ErrUnsupported for it.
	Snapshot(ctx context.Context, to SnapshotFiles) error
}

// SnapshotFiles are the two files of a snapshot. Disks are not part of it.
type SnapshotFiles struct {
	State string // devices and vCPUs, in the VMM's own format
	Mem   string // the guest's memory
	Diff  bool   // only memory that changed since the last snapshot; needs Launch.TrackDirty
}

// Check refuses names that cannot be those of a snapshot, and files that exist.
func (f SnapshotFiles) Check() error {
	if !filepath.IsAbs(f.State) || !filepath.IsAbs(f.Mem) || filepath.Clean(f.State) == filepath.Clean(f.Mem) {
		return mvm.Errorf(mvm.ErrInvalid, "a snapshot to %q and %q: not two absolute paths", f.State, f.Mem).WithHint("give two files")
	}
	for _, path := range []string{f.State, f.Mem} {
		switch _, err := os.Lstat(path); {
		case err == nil:
			return mvm.Errorf(mvm.ErrExists, "%s exists", path).WithHint("remove it, or give another name")
		case !errors.Is(err, fs.ErrNotExist):
			return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("see whether the directory can be used")
		}
		if fi, err := os.Stat(filepath.Dir(path)); err != nil || !fi.IsDir() {
			return mvm.Errorf(mvm.ErrUnavailable, "%s is no directory", filepath.Dir(path)).WithHint("make it first")
		}
	}
	return nil
}

// Restore says from what Start continues a VM, in place of booting its kernel.
// Number, order and kind of the devices in the Launch have to be those of the VM
// that was written; disks, taps, MAC-independent names and sockets are the
// Launch's own, whatever the files say; a disk within Launch.Dir has the name there
// that it had. Kernel, initrd and command line are not looked at.
//
// Start gives mvm.ErrUnavailable for a file that is missing, mvm.ErrBroken for one
// that is truncated or no snapshot of this driver, mvm.ErrConflict for a Launch with
// other devices.
type Restore struct {
	State  string
	Mem    string
	Resume bool // the vCPUs run when Start returns; else they are paused
}

// DiskHotplugger is a Machine that disks can be plugged into while it runs.
type DiskHotplugger interface {
	// AttachDisk returns when the VMM has the disk; a guest may have to be told to
	// look for it. An id that is taken gives mvm.ErrExists, a VM that was started
	// without what it needs mvm.ErrUnsupported.
	AttachDisk(ctx context.Context, d Disk) error
	// DetachDisk returns when the VMM has let go of the file. A guest that does
	// not release the disk within ctx gives mvm.ErrBusy, and keeps it; where the VMM
	// does not ask the guest (Firecracker), the guest has to have let go before. An
	// id that is not there gives mvm.ErrNotFound, the root disk mvm.ErrConflict.
	DetachDisk(ctx context.Context, id string) error
}

// Ballooner is a Machine whose guest can be asked to give memory back. A VM without
// Launch.Balloon gives mvm.ErrUnsupported, more than its memory mvm.ErrInvalid.
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
// takes the bound away. An id that is not there gives mvm.ErrNotFound.
type RateLimiter interface {
	LimitDisk(ctx context.Context, id string, limit RateLimit) error
}

// NICLimiter is a Machine whose interfaces can be bounded while it runs; rx and tx
// are as the guest sees them. An id that is not there gives mvm.ErrNotFound.
type NICLimiter interface {
	LimitNIC(ctx context.Context, id string, rx, tx RateLimit) error
}

// RateLimit bounds a device. Zero does not bound.
type RateLimit struct {
	BytesPerSec int64 `json:"bytes_per_sec"`
	OpsPerSec   int64 `json:"ops_per_sec"` // requests of a disk, packets of an interface
	BurstBytes  int64 `json:"burst_bytes"` // once, on top
}

// Check refuses what bounds nothing: numbers below zero, and a burst on top of no
// bound.
func (l RateLimit) Check() error {
	switch {
	case l.BytesPerSec < 0 || l.OpsPerSec < 0 || l.BurstBytes < 0:
		return mvm.Errorf(mvm.ErrInvalid, "a limit is below zero").WithHint("give 0 for no limit")
	case l.BurstBytes > 0 && l.BytesPerSec == 0:
		return mvm.Errorf(mvm.ErrInvalid, "a burst of %d bytes is on top of no limit", l.BurstBytes).WithHint("limit the bytes per second too")
	}
	return nil
}

// MetadataHolder is a Machine with a metadata service that its guest can ask
// (Firecracker's MMDS, version 2). A VM without Launch.Metadata gives
// mvm.ErrUnsupported, what is no JSON object or too large mvm.ErrInvalid.
type MetadataHolder interface {
	SetMetadata(ctx context.Context, object json.RawMessage) error // one JSON object, replaces all
	Metadata(ctx context.Context) (json.RawMessage, error)
}

// Metered is a Machine that writes metrics to Files.Metrics.
type Metered interface {
	// FlushMetrics appends one JSON object, on a line of its own, and returns when it
	// is there. A VM without Launch.Metrics gives mvm.ErrUnsupported.
	FlushMetrics(ctx context.Context) error
}

// Jail says how a VMM is locked up. Its process has a user, a root directory, a
// pid namespace and a cgroup of its own.
type Jail struct {
	Jailer    string // the jailer's binary, of the VMM's version
	UID, GID  int    // not root's, and of no other VM
	CgroupMiB int    // limit of memory; 0 takes the guest's and what the VMM needs
	NoFile    int    // limit of open files; 0 takes 2048
	FileMiB   int    // limit of a file's size; 0 for none
	Cgroup    Cgroup // which limits the host can hold
}
