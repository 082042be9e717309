package firecracker

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// errNoClock says that the host which wrote a snapshot could not tell the time with
// it. Firecracker then refuses to set the guest's clock, and ends.
var errNoClock = errors.New("the snapshot does not have the time")

// load continues the VM of a snapshot in a Firecracker that has just been started.
// Before its vCPUs run, it is made what the launch asks for.
func (m *machine) load(ctx context.Context, l vmm.Launch, request SnapshotLoad) error {
	up, cancel := m.whileUp(ctx)
	defer cancel(nil)
	if err := m.untilState(up, "Not started", func() bool { return true }); err != nil {
		return err
	}
	if err := m.api.LoadSnapshot(ctx, request); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return m.loadFault(up, l, err)
	}
	cfg, err := m.api.Config(ctx)
	if err != nil {
		return err
	}
	if err := same(l, cfg); err != nil {
		return err
	}
	for _, disk := range l.Disks {
		if err := m.LimitDisk(ctx, disk.ID, disk.Limit); err != nil {
			return err
		}
	}
	for _, nic := range l.NICs {
		if err := m.LimitNIC(ctx, nic.ID, nic.RX, nic.TX); err != nil {
			return err
		}
	}
	if l.Restore.Resume {
		return m.api.Resume(ctx)
	}
	return nil
}

// endTime is what a Firecracker that could not load has to end in.
const endTime = 2 * time.Second

// loadFault says in our words why a snapshot was not loaded. Firecracker answers and
// ends; where the answer was lost, its end has to do.
func (m *machine) loadFault(up context.Context, l vmm.Launch, err error) error {
	const again = "the snapshot is damaged, or another version made it: take another one"
	switch {
	case refused(err, "Failed to load snapshot state from file", "Failed to load guest memory", "Failed to restore guest memory",
		"Invalid snapshot state", "OffsetTooLarge"):
		return mvm.Errorf(mvm.ErrBroken, "%s is no snapshot that can be loaded: %w", l.Restore.State, err).WithHint(again)
	case refused(err, "Failed to open snapshot file"):
		return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("take another snapshot")
	case refused(err, "Unknown Network Device", "Unknown Vsock Device"):
		return mvm.Errorf(mvm.ErrConflict, "the VM is not like the one in the snapshot: %w", err).WithHint("give it the same devices")
	case refused(err, "KVM_CLOCK_REALTIME", "clock_realtime", "realtime"):
		return mvm.Errorf(mvm.ErrUnsupported, "%w: %w", errNoClock, err).WithHint("take another snapshot")
	case !refused(err, ""): // no answer
		select {
		case <-up.Done():
			err = context.Cause(up)
		case <-time.After(endTime):
		}
	}
	return mvm.Errorf(mvm.ErrUnavailable, "the snapshot cannot be loaded: %w", err).
		WithHint("it loads in the version that made it, on the same kind of CPU; 'mvm logs --os' has more")
}

// same holds the devices of the snapshot to those of the launch.
func same(l vmm.Launch, have Config) error {
	var disks, wantDisks, nics, wantNICs []string
	for _, d := range have.Drives {
		disks = append(disks, d.ID)
	}
	for _, d := range l.Disks {
		wantDisks = append(wantDisks, deviceID(d.ID))
	}
	for _, n := range have.NICs {
		nics = append(nics, n.ID)
	}
	for _, n := range l.NICs {
		wantNICs = append(wantNICs, deviceID(n.ID))
	}
	for _, list := range [][]string{disks, wantDisks, nics, wantNICs} {
		slices.Sort(list)
	}
	differ := func(what string, has, wants any) error {
		return mvm.Errorf(mvm.ErrConflict, "the VM in the snapshot has other %s: %v, not %v", what, has, wants).
			WithHint("give the VM what the one in the snapshot has")
	}
	switch {
	case !slices.Equal(disks, wantDisks):
		return differ("disks", disks, wantDisks)
	case !slices.Equal(nics, wantNICs):
		return differ("interfaces", nics, wantNICs)
	case have.Machine.VCPUs != l.VCPUs:
		return differ("vCPUs", have.Machine.VCPUs, l.VCPUs)
	case (have.Vsock != nil) != l.Agent:
		return differ("channels for the agent", have.Vsock != nil, l.Agent)
	case (have.Balloon != nil) != (l.Balloon != nil):
		return differ("balloons", have.Balloon != nil, l.Balloon != nil)
	case (have.MMDS != nil) != (l.Metadata != nil):
		return differ("metadata services", have.MMDS != nil, l.Metadata != nil)
	}
	return nil
}
