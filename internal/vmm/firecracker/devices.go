package firecracker

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// lacks is the error for a VM that was started without a device, which cannot be
// added later.
func lacks(what, hint string) error {
	return mvm.Errorf(mvm.ErrUnsupported, "the VM has no %s", what).WithHint("%s", hint)
}

// SetBalloon implements vmm.Ballooner.
func (m *machine) SetBalloon(ctx context.Context, mib int) error {
	cfg, err := m.api.Config(ctx)
	if err != nil {
		return err
	}
	if cfg.Balloon == nil {
		return noBalloon()
	}
	if err := checkBalloonSize(mib, cfg.Machine.MemMiB); err != nil {
		return err
	}
	err = m.api.SetBalloon(ctx, mib)
	if refused(err, "not activated") {
		return mvm.Errorf(mvm.ErrUnavailable, "the guest does not drive its balloon: %w", err).
			WithHint("wait until it is up; its kernel needs the driver virtio_balloon")
	}
	return err
}

func noBalloon() error { return lacks("balloon", "stop the VM, and start it with one") }

// BalloonStats implements vmm.Ballooner.
func (m *machine) BalloonStats(ctx context.Context) (vmm.BalloonStats, error) {
	s, err := m.api.BalloonStats(ctx)
	if err == nil {
		return vmm.BalloonStats{
			TargetMiB: int(s.TargetMiB), ActualMiB: int(s.ActualMiB),
			FreeBytes: s.FreeMemory, TotalBytes: s.TotalMemory, AvailableBytes: s.AvailableMemory,
		}, nil
	}
	none := vmm.BalloonStats{TargetMiB: -1, ActualMiB: -1, FreeBytes: -1, TotalBytes: -1, AvailableBytes: -1}
	if refused(err, "Device not found") {
		return none, noBalloon()
	}
	if refused(err, "stats are disabled") {
		b, err := m.api.Balloon(ctx)
		none.TargetMiB = b.AmountMiB
		return none, err
	}
	return none, err
}

// LimitDisk implements vmm.RateLimiter.
func (m *machine) LimitDisk(ctx context.Context, id string, limit vmm.RateLimit) error {
	if err := limit.Check(); err != nil {
		return err
	}
	err := m.api.UpdateDrive(ctx, DriveUpdate{ID: deviceID(id), Limiter: updateOf(limit)})
	if refused(err, "Device not found") {
		return noDisk(id)
	}
	return err
}

// LimitNIC implements vmm.NICLimiter.
func (m *machine) LimitNIC(ctx context.Context, id string, rx, tx vmm.RateLimit) error {
	for _, limit := range []vmm.RateLimit{rx, tx} {
		if err := limit.Check(); err != nil {
			return err
		}
	}
	err := m.api.UpdateNetwork(ctx, NetworkUpdate{ID: deviceID(id), RX: updateOf(rx), TX: updateOf(tx)})
	if refused(err, "Device not found") {
		return mvm.Errorf(mvm.ErrNotFound, "the VM has no interface %s", id).WithHint("'mvm vm inspect' shows its interfaces")
	}
	return err
}

// SetMetadata implements vmm.MetadataHolder.
func (m *machine) SetMetadata(ctx context.Context, object json.RawMessage) error {
	data, err := metadataOf(object)
	if err != nil {
		return err
	}
	return noService(m.api.SetMetadata(ctx, data))
}

// Metadata implements vmm.MetadataHolder.
func (m *machine) Metadata(ctx context.Context) (json.RawMessage, error) {
	data, err := m.api.Metadata(ctx)
	return data, noService(err)
}

func noService(err error) error {
	if refused(err, "not initialized") {
		return lacks("metadata service", "stop the VM, and start it with metadata")
	}
	return err
}

// metricsTime is how long the supervisor may take to write down metrics.
const metricsTime = 5 * time.Second

// FlushMetrics implements vmm.Metered. Firecracker writes to a FIFO, of which the
// supervisor fills the file.
func (m *machine) FlushMetrics(ctx context.Context) error {
	name := m.extra().Metrics
	if name == "" {
		return lacks("metrics", "stop the VM, and start it with --enable-metrics")
	}
	path := filepath.Join(m.handle.Dir, name)
	before := sizeOf(path)
	if err := m.api.FlushMetrics(ctx); err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, metricsTime)
	defer cancel()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for sizeOf(path) == before || !endsLine(path) {
		select {
		case <-ticker.C:
		case <-soon.Done():
			if err := ctx.Err(); err != nil {
				return err
			}
			return mvm.Errorf(mvm.ErrUnavailable, "nobody writes the VM's metrics to %s", path).
				WithHint("its supervisor has ended, or the disk is full; stop the VM and start it again")
		}
	}
	return nil
}

func sizeOf(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return -1
	}
	return fi.Size()
}

// endsLine tells whether the last line of a file is complete.
func endsLine(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return false
	}
	var last [1]byte
	_, err = f.ReadAt(last[:], fi.Size()-1)
	return err == nil && last[0] == '\n'
}
