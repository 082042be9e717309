package qemu

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// maxRate is the most that QEMU can count (THROTTLE_VALUE_MAX in
// include/qemu/throttle.h).
const maxRate = 1_000_000_000_000_000

// throttle bounds a disk, reading and writing together. QEMU's bursts come back
// when the disk rests (docs/throttle.txt): there is none that is given once. Its
// bucket holds a tenth of a second by itself, and with a burst at least one second.
func throttle(ctx context.Context, q *QMP, device string, limit vmm.RateLimit) error {
	burst := int64(0)
	if limit.BurstBytes > limit.BytesPerSec/10 {
		burst = max(limit.BurstBytes, limit.BytesPerSec)
	}
	return q.Execute(ctx, "block_set_io_throttle", map[string]any{
		"id": peripheral + "/" + device + "/virtio-backend", "bps": limit.BytesPerSec, "bps_rd": 0, "bps_wr": 0, "iops": limit.OpsPerSec, "iops_rd": 0, "iops_wr": 0,
		"bps_max": burst,
	}, nil)
}

// LimitDisk implements vmm.RateLimiter.
func (m *machine) LimitDisk(ctx context.Context, id string, limit vmm.RateLimit) error {
	if err := checkLimit("disk "+id, limit); err != nil {
		return err
	}
	return m.gone(ctx, m.session(ctx, "block_set_io_throttle", func(ctx context.Context, q *QMP) error {
		disks, err := disksOf(ctx, q)
		if err != nil {
			return err
		}
		disk := find(disks, id)
		if disk == nil {
			return noDisk(id)
		}
		return throttle(ctx, q, disk.device, limit)
	}))
}

func noDisk(id string) error {
	return mvm.Errorf(mvm.ErrNotFound, "the VM has no disk %q", id).WithHint("see 'mvm vm inspect'")
}
