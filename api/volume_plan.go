package api

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// vmVolume is a volume on the VM of a plan.
type vmVolume struct {
	item *mvm.VolumeItem
	at   mvm.VolumeAttachment
}

// volumeDiskID is what drivers know a volume by, for its life and of 20 characters:
// QEMU's guests see it as the disk's serial, which has no more.
func volumeDiskID(v *mvm.VolumeItem) string { return firstOf(v.DiskID, "vol-"+v.ID) }

// disk is the volume as a driver is told. A raw one that has all its room on the
// host keeps it.
func (v vmVolume) disk(p paths) vmm.Disk {
	d := vmm.Disk{
		ID: volumeDiskID(v.item), Path: p.abs(v.item.Path), Format: v.item.Format,
		ReadOnly: v.at.IsReadOnly || v.item.IsReadOnly, Writeback: v.item.Writeback,
	}
	if d.Format == disk.Raw {
		virtual, allocated, err := disk.Sizes(d.Path)
		d.NoDiscard = err == nil && allocated >= virtual
	}
	return d
}

// resolveVolumes chooses the volumes of a new VM.
func (p *vmPlan) resolveVolumes(inv *inventory, in VMCreateInput) error {
	for _, s := range in.Volumes {
		spec, err := parseVolumeSpec(s)
		if err != nil {
			return err
		}
		v, err := pickVolume(spec.volume, inv.volumes)
		if err != nil {
			return err
		}
		at, err := spec.attachment(v, p.item.ID)
		if err != nil {
			return err
		}
		if in.Count != nil && *in.Count > 1 && !(at.IsReadOnly && v.IsShareable) {
			return mvm.Errorf(mvm.ErrInvalid, "volume %s cannot be on %d VMs at once", mvm.Quote(v.Name), *in.Count).
				WithHint("several VMs share a volume that was made with --shareable, read-only: NAME:ro")
		}
		if slices.ContainsFunc(p.volumes, func(other vmVolume) bool { return other.item.ID == v.ID }) {
			return mvm.Errorf(mvm.ErrInvalid, "volume %s is named twice", mvm.Quote(v.Name)).WithHint("name it once")
		}
		p.volumes = append(p.volumes, vmVolume{v, at})
	}
	return p.checkVolumes()
}

// loadVolumes is findVolumes with what the database says now.
func (p *vmPlan) loadVolumes(ctx context.Context, tx *store.Tx) error {
	inv := &inventory{}
	var err error
	if inv.attachments, err = tx.ListAttachmentsOfVM(ctx, p.item.ID); err != nil || len(inv.attachments)+len(p.volumes) == 0 {
		return err
	}
	for _, a := range inv.attachments {
		if err := volumeFree(ctx, tx, a.VolumeID); err != nil {
			return err
		}
	}
	if inv.volumes, err = tx.ListVolumes(ctx); err != nil {
		return err
	}
	if err := p.findVolumes(inv); err != nil {
		return err
	}
	return p.volumesFit()
}

// findVolumes puts the volumes that the VM has into its plan, in their order.
// Their files have to be there.
func (p *vmPlan) findVolumes(inv *inventory) error {
	p.volumes = nil
	for _, at := range inv.attachments {
		if at.VMID != p.item.ID || at.Pending == mvm.PendingDetach {
			continue
		}
		i := slices.IndexFunc(inv.volumes, func(v *mvm.VolumeItem) bool { return v.ID == at.VolumeID })
		if i < 0 { // removed between two queries
			continue
		}
		p.volumes = append(p.volumes, vmVolume{inv.volumes[i], at})
	}
	return p.checkVolumes()
}

// checkVolumes sees that the files behind the rows are there.
func (p *vmPlan) checkVolumes() error {
	p.item.VolumeIDs = []string{}
	for _, v := range p.volumes {
		p.item.VolumeIDs = append(p.item.VolumeIDs, v.item.ID)
		if _, err := os.Stat(p.c.paths.abs(v.item.Path)); err != nil {
			e := mvm.Errorf(mvm.ErrBroken, "the file of volume %s cannot be used: %w", mvm.Quote(v.item.Name), err)
			if errors.Is(err, fs.ErrNotExist) {
				e = mvm.Errorf(mvm.ErrBroken, "the file of volume %s is missing: %s", mvm.Quote(v.item.Name), p.c.paths.abs(v.item.Path))
			}
			return e.WithHint("put it back, or go without it: 'mvm volume detach %s %s'", p.item.Name, v.item.Name)
		}
		if err := disk.Standalone(p.c.paths.abs(v.item.Path), v.item.Format); err != nil {
			return err
		}
	}
	return nil
}

// volumesFit refuses by name what the VM's hypervisor cannot use. Firecracker would
// hand the guest the bytes of a qcow2 file as they are: it gets such a volume from a
// server, or not at all.
func (p *vmPlan) volumesFit() error {
	have := p.probe.Capabilities
	for _, v := range p.volumes {
		name, driver := mvm.Quote(v.item.Name), p.driver.Name()
		switch {
		case v.item.Format == disk.Raw || have.Qcow2:
		case !have.Qcow2Volumes:
			return mvm.Errorf(mvm.ErrUnsupported, "volume %s is %s, which %s gets from qemu-storage-daemon, and that is not installed", name, v.item.Format, driver).
				WithHint("'apt-get install qemu-system-common' has it; or make a raw volume with 'mvm volume create', or use --hypervisor qemu")
		case p.restore != nil:
			return mvm.Errorf(mvm.ErrUnsupported, "volume %s is %s, which %s cannot continue a VM with", name, v.item.Format, driver).
				WithHint("detach it with 'mvm volume detach %s %s', or start the VM without the snapshot", p.item.Name, v.item.Name)
		}
	}
	return nil
}

// reserveVolumes attaches the volumes of a new VM to it.
func (p *vmPlan) reserveVolumes(ctx context.Context, tx *store.Tx) error {
	for i := range p.volumes {
		if err := volumeFree(ctx, tx, p.volumes[i].item.ID); err != nil {
			return err
		}
		a := &p.volumes[i].at
		a.VMID = p.item.ID
		if err := tx.AttachVolume(ctx, a); err != nil {
			return err
		}
	}
	return nil
}
