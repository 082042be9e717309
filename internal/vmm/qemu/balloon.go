package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/vmm"
)

const (
	balloonID = "balloon"
	// peripheral is where QEMU's object tree has the devices that have an id.
	peripheral  = "/machine/peripheral"
	balloonPath = peripheral + "/" + balloonID

	// balloonFile, in the VM's directory, holds the balloon's target in MiB: QEMU
	// tells how far the guest is, and not what was asked of it.
	balloonFile = "balloon.target"
)

func setProperty(ctx context.Context, q *QMP, path, property string, value any) error {
	return q.Execute(ctx, "qom-set", map[string]any{"path": path, "property": property, "value": value}, nil)
}

func property(ctx context.Context, q *QMP, path, name string, result any) error {
	return q.Execute(ctx, "qom-get", map[string]string{"path": path, "property": name}, result)
}

// beginBalloon sets how often the guest reports, and in a VM that boots what it is
// to give up.
func beginBalloon(ctx context.Context, q *QMP, l vmm.Launch, fresh bool) error {
	if err := setProperty(ctx, q, balloonPath, "guest-stats-polling-interval", l.Balloon.StatsSec); err != nil {
		return err
	}
	if !fresh {
		return nil
	}
	return setBalloon(ctx, q, l.MemMiB-l.Balloon.MiB)
}

// setBalloon says how much memory the guest is to be left with.
func setBalloon(ctx context.Context, q *QMP, mib int) error {
	return q.Execute(ctx, "balloon", map[string]int64{"value": int64(mib) << 20}, nil)
}

// hasBalloon refuses a VM that has none.
func (m *machine) hasBalloon() (*facts, error) {
	f := m.extra().Facts
	if f == nil || !f.Balloon {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "the VM was started without a balloon").WithHint("make it with --balloon")
	}
	return f, nil
}

// SetBalloon implements vmm.Ballooner.
func (m *machine) SetBalloon(ctx context.Context, mib int) error {
	f, err := m.hasBalloon()
	if err != nil {
		return err
	}
	if err := checkBalloonSize(mib, f.MemMiB); err != nil {
		return err
	}
	err = m.session(ctx, "balloon", func(ctx context.Context, q *QMP) error { return setBalloon(ctx, q, f.MemMiB-mib) })
	if err != nil {
		return m.gone(ctx, err)
	}
	return m.recordBalloon(mib)
}

func (m *machine) recordBalloon(mib int) error {
	return fsx.WriteFile(filepath.Join(m.handle.Dir, balloonFile), []byte(strconv.Itoa(mib)+"\n"), 0o600)
}

// balloonTarget returns what was asked of the guest, 0 where that is not known.
func (m *machine) balloonTarget() int {
	data, err := os.ReadFile(filepath.Join(m.handle.Dir, balloonFile))
	if err != nil {
		return 0
	}
	mib, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return mib
}

// guestStats are the balloon's (docs/interop/virtio-balloon-stats in QEMU's
// documentation). What the guest has not told is all ones.
type guestStats struct {
	Stats struct {
		Free      uint64 `json:"stat-free-memory"`
		Total     uint64 `json:"stat-total-memory"`
		Available uint64 `json:"stat-available-memory"`
	} `json:"stats"`
	At int64 `json:"last-update"` // seconds since the epoch; 0 for never
}

// BalloonStats implements vmm.Ballooner. How much the guest has given up is known
// without statistics, too.
func (m *machine) BalloonStats(ctx context.Context) (vmm.BalloonStats, error) {
	f, err := m.hasBalloon()
	if err != nil {
		return vmm.BalloonStats{}, err
	}
	s := vmm.BalloonStats{TargetMiB: m.balloonTarget(), ActualMiB: -1, FreeBytes: -1, TotalBytes: -1, AvailableBytes: -1}
	err = m.session(ctx, "query-balloon", func(ctx context.Context, q *QMP) error {
		var left struct {
			Actual int64 `json:"actual"` // bytes that the guest has
		}
		if err := q.Execute(ctx, "query-balloon", nil, &left); err != nil {
			return err
		}
		s.ActualMiB = f.MemMiB - int(left.Actual>>20)
		var told guestStats
		var refused *QMPError
		if err := property(ctx, q, balloonPath, "guest-stats", &told); err != nil {
			if errors.As(err, &refused) { // it has told nothing yet
				return nil
			}
			return err
		}
		if told.At > 0 {
			s.FreeBytes, s.TotalBytes, s.AvailableBytes = int64(told.Stats.Free), int64(told.Stats.Total), int64(told.Stats.Available)
		}
		return nil
	})
	return s, m.gone(ctx, err)
}
