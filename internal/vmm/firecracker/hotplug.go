package firecracker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// findDisk asks Firecracker for a drive; nil when it has none of that id.
func (m *machine) findDisk(ctx context.Context, id string) (*Drive, error) {
	cfg, err := m.api.Config(ctx)
	if i := slices.IndexFunc(cfg.Drives, func(d Drive) bool { return d.ID == deviceID(id) }); i >= 0 {
		return &cfg.Drives[i], err
	}
	return nil, err
}

// AttachDisk implements vmm.DiskHotplugger. The guest finds the disk when it scans
// its PCI bus (docs/device-hotplug.md): nobody tells it.
func (m *machine) AttachDisk(ctx context.Context, d vmm.Disk) error {
	if err := checkDisk(d); err != nil {
		return err
	}
	if served(d) {
		return onlyFromStart("takes")
	}
	if _, err := os.Stat(d.Path); err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("see whether the volume is there")
	}
	there, err := m.findDisk(ctx, d.ID)
	if err != nil {
		return err
	}
	if there != nil { // before its link is touched
		return taken(d.ID)
	}
	if err := m.addressesAgree(); err != nil {
		return err
	}
	if d.AsyncIO {
		d.AsyncIO = hasIOUring()
	}
	drive, err := m.handIn(ctx, d)
	if err != nil {
		return err
	}
	err = m.api.AddDrive(ctx, drive)
	switch {
	case err == nil:
		return nil
	case refused(err, "Device ID in use"):
		return taken(d.ID) // its name is that one's
	case ctx.Err() != nil:
		return err // it may have been attached; DetachDisk takes it back
	}
	err = errors.Join(err, m.takeBack(context.WithoutCancel(ctx), d.ID))
	if refused(err, "PCI is not enabled") {
		return mvm.Errorf(mvm.ErrUnsupported, "firecracker plugs disks into VMs with PCI only: %w", err).
			WithHint("stop the VM, attach the disk, and start it again; a VM created with --pci takes it while it runs")
	}
	return err
}

// handIn makes a disk reachable for the VMM, by the name that it is told.
func (m *machine) handIn(ctx context.Context, d vmm.Disk) (Drive, error) {
	drive := driveOf(m.handle.Dir, d, false)
	if m.handle.Jail == nil {
		return drive, linkDisk(m.handle.Dir, d)
	}
	drive.Path = linkName(d)
	return drive, m.lendLate(ctx, handed{name: drive.Path, path: d.Path, readOnly: d.ReadOnly})
}

// takeBack undoes handIn.
func (m *machine) takeBack(ctx context.Context, id string) error {
	name := linkName(vmm.Disk{ID: id})
	if m.handle.Jail == nil {
		return removeLink(filepath.Join(m.handle.Dir, name))
	}
	return m.returnEarly(ctx, name)
}

func taken(id string) error {
	return mvm.Errorf(mvm.ErrExists, "the VM has a disk %s", id).WithHint("detach it first")
}

// DetachDisk implements vmm.DiskHotplugger. Firecracker does not ask the guest, which
// has to have let go of the disk, and has removed the device.
func (m *machine) DetachDisk(ctx context.Context, id string) error {
	if id == m.extra().Root {
		return mvm.Errorf(mvm.ErrConflict, "%s is the root disk", id).WithHint("stop the VM, and remove it with its disk")
	}
	there, err := m.findDisk(ctx, id)
	if err == nil && there != nil && there.Socket != "" {
		return onlyFromStart("changes")
	}
	if err == nil && there != nil {
		err = m.noteUnplug()
	}
	if err != nil {
		return err
	}
	switch err := m.api.RemoveDrive(ctx, deviceID(id)); {
	case refused(err, "Device not found"):
		return noDisk(id)
	case refused(err, "PCI is not enabled"):
		return mvm.Errorf(mvm.ErrUnsupported, "firecracker unplugs disks of VMs with PCI only: %w", err).
			WithHint("stop the VM, detach the disk, and start it again")
	case err != nil:
		return err
	}
	return m.takeBack(ctx, id)
}

func noDisk(id string) error {
	return mvm.Errorf(mvm.ErrNotFound, "the VM has no disk %s", id).WithHint("'mvm vm inspect' shows its disks")
}
