package api

import (
	"context"
	"encoding/json"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// attachedVolumes are the volumes of a VM in the order of its disks.
func attachedVolumes(ctx context.Context, q store.Queries, vmID string) ([]vmVolume, error) {
	attached, err := q.ListAttachmentsOfVM(ctx, vmID)
	if err != nil {
		return nil, err
	}
	var out []vmVolume
	for _, at := range attached {
		if at.Pending == mvm.PendingAttach { // the running VM does not have it
			continue
		}
		v, err := q.GetVolume(ctx, at.VolumeID)
		if err != nil {
			return nil, err
		}
		out = append(out, vmVolume{v, at})
	}
	return out, nil
}

func asDisks(volumes []vmVolume, p paths) []vmm.Disk {
	disks := make([]vmm.Disk, 0, len(volumes))
	for _, v := range volumes {
		disks = append(disks, v.disk(p))
	}
	return disks
}

// volumeCopies are the volumes that a restored VM gets: copies of those that the
// snapshot has, as they were at that moment, with names of their own.
type volumeCopies struct {
	c    *core
	made []*mvm.VolumeItem
	from []string // the files in the snapshot
}

// copyVolumes plans the volumes of a restored VM. Those that are read-only are not
// in the snapshot and are attached as they are.
func (p *vmPlan) copyVolumes(ctx context.Context, l *loading) (*volumeCopies, error) {
	c := p.c
	copies := &volumeCopies{c: c}
	p.volumes, p.item.VolumeIDs = nil, []string{}
	for _, d := range l.meta.Disks[1:] {
		at := *d.Attachment
		v, err := c.st.GetVolume(ctx, at.VolumeID)
		switch {
		case d.ReadOnly && err != nil:
			return nil, mvm.Errorf(mvm.ErrBroken, "its read-only volume %s is gone", mvm.Quote(d.Volume)).WithHint("a snapshot holds the volumes that the VM could write to only")
		case !d.ReadOnly:
			v = &mvm.VolumeItem{
				ID: newID(), Name: p.item.Name + "-" + d.Volume, SizeBytes: d.VirtualSize, Format: d.Format, Status: mvm.VolumeAvailable,
				CreatedAt: now(), UpdatedAt: now(), FSType: d.FSType, DiskID: d.ID,
			}
			if err := mvm.ValidateName("volume", v.Name); err != nil {
				return nil, err
			}
			v.Path = c.paths.rel(filepath.Join(c.paths.volumes(), v.ID+"."+d.Format))
			copies.made, copies.from = append(copies.made, v), append(copies.from, filepath.Join(l.dir, d.File))
		}
		at.VolumeID, at.VMID = v.ID, p.item.ID
		p.volumes, p.item.VolumeIDs = append(p.volumes, vmVolume{v, at}), append(p.item.VolumeIDs, v.ID)
	}
	return copies, nil
}

// reserve makes the rows of the copies; the plan's reservation attaches them.
func (v *volumeCopies) reserve(ctx context.Context, tx *store.Tx) error {
	for _, item := range v.made {
		if err := tx.InsertVolume(ctx, item); err != nil {
			return err
		}
	}
	return nil
}

func (v *volumeCopies) steps() []op.Step {
	var steps []op.Step
	for i, item := range v.made {
		steps = append(steps, &cloneStep{Path: v.c.paths.abs(item.Path), from: v.from[i], format: item.Format})
	}
	return steps
}

// ids are what has to be forgotten when the restore is undone.
func (v *volumeCopies) ids() []string {
	var ids []string
	for _, item := range v.made {
		ids = append(ids, item.ID)
	}
	return ids
}

// forgetVolumes removes the rows of volumes that were only being made. ids is JSON.
func forgetVolumes(tx *store.Tx, ids []byte) error {
	var all []string
	if err := json.Unmarshal(ids, &all); err != nil {
		return mvm.Errorf(mvm.ErrBroken, "the journal's record of volumes: %w", err)
	}
	for _, id := range all {
		if err := tx.DeleteVolume(tx.Context(), id); err != nil {
			return err
		}
	}
	return nil
}
