package vmmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

var _ vmm.Snapshotter = (*fakeMachine)(nil)

// fakeState is the state file of a snapshot of the fake. The memory file is as large
// as the memory, and begins with the same mark.
type fakeState struct {
	Magic   string       `json:"fake_snapshot"` // fakeMagic
	Mark    string       `json:"mark"`
	VCPUs   int          `json:"vcpus"`
	MemMiB  int          `json:"mem_mib"`
	Disks   []string     `json:"disks"`
	NICs    []string     `json:"nics"`
	Agent   bool         `json:"agent"`
	Balloon *vmm.Balloon `json:"balloon"`
	Service bool         `json:"metadata_service"`
}

const fakeMagic = "v1"

func (vm *fakeVM) state() fakeState {
	l := vm.launch
	s := fakeState{Magic: fakeMagic, VCPUs: l.VCPUs, MemMiB: l.MemMiB, Agent: l.Agent, Service: vm.metadata != nil}
	for _, d := range l.Disks {
		s.Disks = append(s.Disks, d.ID)
	}
	for _, n := range l.NICs {
		s.NICs = append(s.NICs, n.ID)
	}
	if l.Balloon != nil {
		b := *l.Balloon
		b.MiB = vm.balloon
		s.Balloon = &b
	}
	return s
}

// Snapshot implements vmm.Snapshotter.
func (m *fakeMachine) Snapshot(ctx context.Context, to vmm.SnapshotFiles) error {
	return m.try(func(vm *fakeVM) error {
		switch {
		case !vm.paused:
			return mvm.Errorf(mvm.ErrConflict, "the VM runs").WithHint("pause it first")
		case to.Diff && !vm.launch.TrackDirty:
			return mvm.Errorf(mvm.ErrUnsupported, "the VM does not track what changes").WithHint("take a full snapshot")
		}
		if err := to.Check(); err != nil {
			return err
		}
		s := vm.state()
		s.Mark = fmt.Sprintf("%s %d %d", m.h.ID, vm.run, time.Now().UnixNano())
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		err = makeFile(ctx, to.State, data, int64(len(data)))
		if err == nil {
			if err = makeFile(ctx, to.Mem, []byte(s.Mark), int64(s.MemMiB)<<20); err != nil {
				_ = os.Remove(to.State)
			}
		}
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			return mvm.Errorf(mvm.ErrUnavailable, "the snapshot cannot be written: %w", err).WithHint("see whether there is space")
		}
		return err
	})
}

// makeFile writes a new file of a size, or leaves none.
func makeFile(ctx context.Context, path string, data []byte, size int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Truncate(size), f.Close()); err != nil {
		_ = os.Remove(path)
	}
	return err
}

// newFakeVM makes a VM that boots, or continues one that was written.
func newFakeVM(l vmm.Launch) (*fakeVM, error) {
	vm := &fakeVM{launch: l, metadata: bytes.Clone(l.Metadata), ended: make(chan struct{})}
	if l.Balloon != nil {
		vm.balloon = l.Balloon.MiB
	}
	if l.Restore == nil {
		return vm, nil
	}
	want := vm.state()
	s, err := readFakeState(*l.Restore)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrBroken, "%w", err).WithHint("take another snapshot")
	}
	if s.Balloon != nil {
		vm.balloon = s.Balloon.MiB
	}
	if s.VCPUs != want.VCPUs || s.MemMiB != want.MemMiB || !slices.Equal(s.Disks, want.Disks) || !slices.Equal(s.NICs, want.NICs) ||
		s.Agent != want.Agent || (s.Balloon == nil) != (want.Balloon == nil) || s.Service != want.Service {
		return nil, mvm.Errorf(mvm.ErrConflict, "the VM is not like the one in the snapshot").WithHint("give it the same devices")
	}
	vm.paused = !l.Restore.Resume
	return vm, nil
}

func readFakeState(from vmm.Restore) (s fakeState, err error) {
	data, err := os.ReadFile(from.State)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil || s.Magic != fakeMagic {
		return s, fmt.Errorf("%s is no snapshot of the fake, or damaged", from.State)
	}
	f, err := os.Open(from.Mem)
	if err != nil {
		return s, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return s, err
	}
	mark := make([]byte, len(s.Mark))
	if _, err := f.ReadAt(mark, 0); err != nil || string(mark) != s.Mark || fi.Size() != int64(s.MemMiB)<<20 {
		return s, fmt.Errorf("%s is not the memory that belongs to %s, or damaged", from.Mem, from.State)
	}
	return s, nil
}
