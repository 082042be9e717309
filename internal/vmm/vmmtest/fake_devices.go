package vmmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

var (
	_ vmm.DiskHotplugger = (*fakeMachine)(nil)
	_ vmm.Ballooner      = (*fakeMachine)(nil)
	_ vmm.RateLimiter    = (*fakeMachine)(nil)
	_ vmm.NICLimiter     = (*fakeMachine)(nil)
	_ vmm.MetadataHolder = (*fakeMachine)(nil)
	_ vmm.Metered        = (*fakeMachine)(nil)
)

// checkFake refuses what no driver can make sense of.
func checkFake(l vmm.Launch) error {
	for _, disk := range l.Disks {
		if err := disk.Limit.Check(); err != nil {
			return err
		}
	}
	for _, nic := range l.NICs {
		for _, limit := range []vmm.RateLimit{nic.RX, nic.TX} {
			if err := limit.Check(); err != nil {
				return err
			}
		}
	}
	if b := l.Balloon; b != nil {
		if err := checkFakeBalloon(l, b.MiB); err != nil {
			return err
		}
	}
	if l.Metadata != nil {
		return checkFakeMetadata(l.Metadata)
	}
	return nil
}

func checkFakeBalloon(l vmm.Launch, mib int) error {
	if mib < 0 || mib > l.MemMiB {
		return mvm.Errorf(mvm.ErrInvalid, "a balloon of %d MiB in a VM of %d MiB", mib, l.MemMiB).WithHint("give 0 to %d", l.MemMiB)
	}
	return nil
}

func checkFakeMetadata(data json.RawMessage) error {
	var object map[string]json.RawMessage
	err := json.Unmarshal(data, &object)
	if err == nil && object == nil {
		err = fmt.Errorf("null is no object")
	}
	if err == nil && len(data) > 51200 {
		err = fmt.Errorf("%d bytes are too much", len(data))
	}
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "the metadata: %w", err).WithHint("metadata is one JSON object of at most 51200 bytes")
	}
	return nil
}

// try is change with something that can fail.
func (m *fakeMachine) try(do func(*fakeVM) error) error {
	var inner error
	if err := m.change(func(vm *fakeVM) { inner = do(vm) }); err != nil {
		return err
	}
	return inner
}

// lacks is the error of a VM that was started without a device.
func lacks(what string) error {
	return mvm.Errorf(mvm.ErrUnsupported, "the VM has no %s", what).WithHint("create it with one")
}

func (vm *fakeVM) disk(id string) int {
	return slices.IndexFunc(vm.launch.Disks, func(d vmm.Disk) bool { return d.ID == id })
}

const idRunes = "-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func (m *fakeMachine) AttachDisk(_ context.Context, d vmm.Disk) error {
	return m.try(func(vm *fakeVM) error {
		if d.ID == "" || strings.Trim(d.ID, idRunes) != "" || !filepath.IsAbs(d.Path) {
			return mvm.Errorf(mvm.ErrInvalid, "the disk %q at %q has no id or no whole path", d.ID, d.Path).WithHint("give it both")
		}
		if vm.disk(d.ID) >= 0 {
			return mvm.Errorf(mvm.ErrExists, "the VM has a disk %s", d.ID).WithHint("detach it first")
		}
		if _, err := os.Stat(d.Path); err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("see whether the volume is there")
		}
		if err := d.Limit.Check(); err != nil {
			return err
		}
		vm.launch.Disks = append(slices.Clone(vm.launch.Disks), d)
		return nil
	})
}

func (m *fakeMachine) DetachDisk(_ context.Context, id string) error {
	return m.try(func(vm *fakeVM) error {
		switch i := vm.disk(id); i {
		case -1:
			return mvm.Errorf(mvm.ErrNotFound, "the VM has no disk %s", id).WithHint("see 'mvm vm inspect'")
		case 0:
			return mvm.Errorf(mvm.ErrConflict, "%s is the root disk", id).WithHint("stop the VM first")
		default:
			vm.launch.Disks = slices.Delete(slices.Clone(vm.launch.Disks), i, i+1)
			return nil
		}
	})
}

func (m *fakeMachine) SetBalloon(_ context.Context, mib int) error {
	return m.try(func(vm *fakeVM) error {
		if vm.launch.Balloon == nil {
			return lacks("balloon")
		}
		if err := checkFakeBalloon(vm.launch, mib); err != nil {
			return err
		}
		vm.balloon = mib
		return nil
	})
}

func (m *fakeMachine) BalloonStats(context.Context) (s vmm.BalloonStats, err error) {
	err = m.try(func(vm *fakeVM) error {
		b := vm.launch.Balloon
		if b == nil {
			return lacks("balloon")
		}
		s = vmm.BalloonStats{TargetMiB: vm.balloon, ActualMiB: -1, FreeBytes: -1, TotalBytes: -1, AvailableBytes: -1}
		if b.StatsSec > 0 {
			total := int64(vm.launch.MemMiB) << 20
			left := total - int64(vm.balloon)<<20
			s = vmm.BalloonStats{TargetMiB: vm.balloon, ActualMiB: vm.balloon, FreeBytes: left, TotalBytes: total, AvailableBytes: left}
		}
		return nil
	})
	return s, err
}

func (m *fakeMachine) LimitDisk(_ context.Context, id string, limit vmm.RateLimit) error {
	return m.try(func(vm *fakeVM) error {
		if err := limit.Check(); err != nil {
			return err
		}
		i := vm.disk(id)
		if i < 0 {
			return mvm.Errorf(mvm.ErrNotFound, "the VM has no disk %s", id).WithHint("see 'mvm vm inspect'")
		}
		vm.launch.Disks = slices.Clone(vm.launch.Disks)
		vm.launch.Disks[i].Limit = limit
		return nil
	})
}

func (m *fakeMachine) LimitNIC(_ context.Context, id string, rx, tx vmm.RateLimit) error {
	return m.try(func(vm *fakeVM) error {
		for _, limit := range []vmm.RateLimit{rx, tx} {
			if err := limit.Check(); err != nil {
				return err
			}
		}
		i := slices.IndexFunc(vm.launch.NICs, func(n vmm.NIC) bool { return n.ID == id })
		if i < 0 {
			return mvm.Errorf(mvm.ErrNotFound, "the VM has no interface %s", id).WithHint("see 'mvm vm inspect'")
		}
		vm.launch.NICs = slices.Clone(vm.launch.NICs)
		vm.launch.NICs[i].RX, vm.launch.NICs[i].TX = rx, tx
		return nil
	})
}

func (m *fakeMachine) SetMetadata(_ context.Context, object json.RawMessage) error {
	return m.try(func(vm *fakeVM) error {
		if vm.metadata == nil {
			return lacks("metadata service")
		}
		if err := checkFakeMetadata(object); err != nil {
			return err
		}
		vm.metadata = bytes.Clone(object)
		return nil
	})
}

func (m *fakeMachine) Metadata(context.Context) (object json.RawMessage, err error) {
	err = m.try(func(vm *fakeVM) error {
		if vm.metadata == nil {
			return lacks("metadata service")
		}
		object = bytes.Clone(vm.metadata)
		return nil
	})
	return object, err
}

func (m *fakeMachine) FlushMetrics(context.Context) error {
	return m.try(func(vm *fakeVM) error {
		if !vm.launch.Metrics {
			return lacks("metrics")
		}
		f, err := os.OpenFile(filepath.Join(vm.launch.Dir, vm.launch.Files.Metrics), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("see the VM's directory")
		}
		_, err = f.WriteString("{\"fake\":1}\n")
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	})
}

// Launched returns the launch of a VM as it is now, with disks that were attached
// and limits that were set; false for a VM that never ran.
func (f *Fake) Launched(vmID string) (vmm.Launch, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	vm := f.vms[vmID]
	if vm == nil {
		return vmm.Launch{}, false
	}
	return vm.launch, true
}
