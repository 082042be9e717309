package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// plan is what a start needs to know besides the launch.
type plan struct {
	layout
	facts facts
	saved savedState
	mem   *os.File // of the snapshot; nil for a VM that boots
}

// plan looks at everything that can be looked at before QEMU runs. Its file has to
// be closed.
func (d *Driver) plan(ctx context.Context, l vmm.Launch) (plan, error) {
	for _, disk := range l.Disks {
		if err := checkImage(disk); err != nil {
			return plan{}, err
		}
	}
	if l.HugePages {
		if err := d.checkPool(l.MemMiB); err != nil {
			return plan{}, err
		}
	}
	p := plan{layout: freshLayout(l)}
	if l.Restore == nil {
		p.facts = d.factsOf(l, p.layout)
		return p, nil
	}
	var err error
	if p.saved, err = readState(l.Restore.State); err != nil {
		return p, err
	}
	version, err := d.version(ctx, l.Binary)
	if err != nil {
		return p, err
	}
	if p.layout, err = p.saved.place(l.Disks); err != nil {
		return p, err
	}
	p.facts = d.factsOf(l, p.layout)
	if err := p.saved.fits(version, p.facts); err != nil {
		return p, err
	}
	p.mem, err = p.saved.openMem(ctx, l.Restore.Mem)
	return p, err
}

func (p plan) close() {
	if p.mem != nil {
		_ = p.mem.Close()
	}
}

// needsSetUp reports whether something has to be said to QEMU before the vCPUs run.
func needsSetUp(l vmm.Launch) bool {
	limited := slices.ContainsFunc(l.Disks, func(d vmm.Disk) bool { return d.Limit != vmm.RateLimit{} })
	return l.Restore != nil || l.Balloon != nil || limited
}

// setUp does that, and returns when the vCPUs run, or when they are paused if that
// was asked for.
func (m *machine) setUp(ctx context.Context, l vmm.Launch, p plan) error {
	ctx, cancel := m.whileAlive(ctx)
	defer cancel()
	err := m.trySetUp(ctx, l, p)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

func (m *machine) trySetUp(ctx context.Context, l vmm.Launch, p plan) error {
	waiting := func(status string) bool { return status == "prelaunch" || status == "inmigrate" }
	if _, err := m.until(ctx, waiting); err != nil {
		return err
	}
	if p.mem != nil {
		if err := m.load(ctx, p.mem); err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "the snapshot does not load: %w", err).WithHint("see %s", filepath.Join(m.handle.Dir, "*.log"))
		}
	}
	if err := m.configure(ctx, l, p); err != nil {
		return err
	}
	if l.Restore != nil && !l.Restore.Resume {
		return nil
	}
	if err := m.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	_, err := m.until(ctx, func(status string) bool { return slices.Contains(begun, status) })
	return err
}

// load has QEMU read the memory, devices and vCPUs of a snapshot. It ends by itself
// when it cannot.
func (m *machine) load(ctx context.Context, mem *os.File) error {
	err := m.session(ctx, "migrate-incoming", func(ctx context.Context, q *QMP) error {
		// No word to the network that the guest has moved: it may be a copy, and the
		// original is where it was.
		if err := q.Execute(ctx, "migrate-set-parameters", map[string]int{"announce-rounds": 0}, nil); err != nil {
			return err
		}
		if err := q.PassFile(ctx, "mem", mem); err != nil {
			return err
		}
		return q.Execute(ctx, "migrate-incoming", map[string]string{"uri": "fd:mem"}, nil)
	})
	for pause := lookFirst; err == nil; pause = min(pause*2, lookMost) {
		var status string
		if status, err = m.status(ctx); err != nil || status != "inmigrate" {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	return err
}

// configure sets what is no part of the command line, nor of a snapshot.
func (m *machine) configure(ctx context.Context, l vmm.Launch, p plan) error {
	err := m.session(ctx, "block_set_io_throttle", func(ctx context.Context, q *QMP) error {
		for i, disk := range l.Disks {
			if disk.Limit == (vmm.RateLimit{}) {
				continue
			}
			if err := throttle(ctx, q, diskDevice(i, disk.ID), disk.Limit); err != nil {
				return err
			}
		}
		if l.Balloon == nil {
			return nil
		}
		return beginBalloon(ctx, q, l, p.mem == nil)
	})
	if err != nil || l.Balloon == nil {
		return err
	}
	mib := l.Balloon.MiB
	if p.mem != nil {
		mib = p.saved.BalloonMiB // the guest goes on with that
	}
	return m.recordBalloon(mib)
}
