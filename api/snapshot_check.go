package api

import (
	"context"
	"errors"
	"os"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// checkLoadable tells whether a snapshot is whole, and whether this host can load
// it: a VMM loads what the same version of it wrote, on the same CPU.
func (c *core) checkLoadable(ctx context.Context, st *store.Store, meta *snapshotMeta, files SnapshotPaths) error {
	if err := checkSnapshotFiles(meta, files); err != nil {
		return err
	}
	s := &meta.Snapshot
	kernel, err := st.GetKernel(ctx, s.SourceVM.KernelID)
	if errors.Is(err, mvm.ErrNotFound) {
		kernel, err = nil, nil
	}
	if err != nil {
		return err
	}
	_, probe, _, err := c.chooseDriverFor(ctx, st, kernel, s.Hypervisor, "", s.SourceVM.BinaryID)
	if err != nil {
		return err
	}
	return fits(s, probe)
}

// fits compares what a snapshot was made with and what there is.
func fits(s *mvm.SnapshotItem, probe vmm.Probe) error {
	const what = "the snapshot was made by %s %s, and here is %s"
	switch {
	case !probe.Capabilities.Snapshot:
		return mvm.Errorf(mvm.ErrUnsupported, "%s cannot load a snapshot here", s.Hypervisor).WithHint("load it on a host where it can")
	case s.VMMVersion != probe.Version:
		return mvm.Errorf(mvm.ErrUnsupported, what, s.Hypervisor, s.VMMVersion, probe.Version).WithHint("get that version back ('mvm binary ls' shows what there is), or make a new snapshot")
	case s.Accel != probe.Accel:
		return mvm.Errorf(mvm.ErrUnsupported, what, s.Hypervisor+" with", s.Accel, probe.Accel).WithHint("load it on a host with %s", s.Accel)
	case s.CPU != cpuDigest(probe.Accel):
		return mvm.Errorf(mvm.ErrUnsupported, "the snapshot was made on another CPU (%s, this host has %s)", s.CPU, cpuDigest(probe.Accel)).
			WithHint("load it on a host with the same CPU, or give VMs a CPU template that both have")
	}
	return nil
}

// checkSnapshotFiles sees that the files are those that were written, and whole.
// The memory is too large to be read twice: its length has to do.
func checkSnapshotFiles(meta *snapshotMeta, files SnapshotPaths) error {
	const again = "make a new snapshot"
	for _, path := range []string{files.State, files.Memory} {
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			return mvm.Errorf(mvm.ErrBroken, "%s is missing or no file", path).WithHint(again)
		}
	}
	size, sum, err := fileSum(files.State)
	if err != nil {
		return err
	}
	mem, err := os.Stat(files.Memory)
	if err != nil {
		return err
	}
	switch {
	case size < meta.StateSize:
		return mvm.Errorf(mvm.ErrBroken, "%s is cut short: it has %d of %d bytes", files.State, size, meta.StateSize).WithHint(again)
	case sum != meta.StateSum:
		return mvm.Errorf(mvm.ErrBroken, "%s is not what was written with this snapshot", files.State).WithHint("name files that belong together, or " + again)
	case mem.Size() != meta.MemSize:
		return mvm.Errorf(mvm.ErrBroken, "%s has %d bytes in place of %d", files.Memory, mem.Size(), meta.MemSize).WithHint("name files that belong together, or " + again)
	}
	return nil
}
