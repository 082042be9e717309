package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/mvmctl/mvm"
)

var volumes = table[mvm.VolumeItem]{
	name: "volumes", noun: "volume",
	cols:  []string{"id", "name", "size_bytes", "format", "path", "status", "vm_id", "created_at", "updated_at", "is_read_only", "is_shareable", "writeback", "fs_type", "disk_id"},
	fixed: []string{"status", "vm_id"},
	fields: func(v *mvm.VolumeItem) []any {
		return []any{&v.ID, &v.Name, &v.SizeBytes, &v.Format, &v.Path, &v.Status, &v.VMID, &v.CreatedAt, &v.UpdatedAt, &v.IsReadOnly, &v.IsShareable, &v.Writeback, &v.FSType, &v.DiskID}
	},
	stamp: func(v *mvm.VolumeItem) []*string { return []*string{&v.CreatedAt, &v.UpdatedAt} },
	unique: map[string]taken{
		"volumes.name": {cols: []string{"name"}, what: "a volume named %q exists already",
			hint: "choose another name; 'mvm volume ls' shows those in use"},
	},
}

// InsertVolume adds a volume. ErrExists when its name is taken.
func (q Queries) InsertVolume(ctx context.Context, v *mvm.VolumeItem) error {
	return volumes.insert(ctx, q, v)
}

// GetVolume returns a volume by id, or ErrNotFound.
func (q Queries) GetVolume(ctx context.Context, id string) (*mvm.VolumeItem, error) {
	return volumes.get(ctx, q, id)
}

// ListVolumes returns the volumes by name.
func (q Queries) ListVolumes(ctx context.Context) ([]*mvm.VolumeItem, error) {
	return volumes.where(ctx, q, "1 order by name")
}

// UpdateVolume writes all fields of a volume but CreatedAt, and those that follow
// from where it is attached.
func (q Queries) UpdateVolume(ctx context.Context, v *mvm.VolumeItem) error {
	return volumes.update(ctx, q, v)
}

// DeleteVolume removes a volume, also from the VMs that have it. One that is gone
// is no error.
func (q Queries) DeleteVolume(ctx context.Context, id string) error {
	return volumes.remove(ctx, q, id)
}

// ListAttachments returns which volumes are on which VMs: by VM, and of a VM in
// the order of its disks.
func (q Queries) ListAttachments(ctx context.Context) ([]mvm.VolumeAttachment, error) {
	return q.attachments(ctx, "1")
}

// ListAttachmentsOfVM returns the volumes of a VM in the order of its disks.
func (q Queries) ListAttachmentsOfVM(ctx context.Context, vmID string) ([]mvm.VolumeAttachment, error) {
	return q.attachments(ctx, "vm_id = ?", vmID)
}

// ListAttachmentsOfVolume returns the VMs that have a volume.
func (q Queries) ListAttachmentsOfVolume(ctx context.Context, volumeID string) ([]mvm.VolumeAttachment, error) {
	return q.attachments(ctx, "volume_id = ?", volumeID)
}

func (q Queries) attachments(ctx context.Context, cond string, args ...any) ([]mvm.VolumeAttachment, error) {
	all := []mvm.VolumeAttachment{}
	err := q.each(ctx, func(r *sql.Rows) error {
		var a mvm.VolumeAttachment
		err := r.Scan(&a.VolumeID, &a.VMID, &a.Position, &a.IsReadOnly, &a.MountPoint, &a.AttachedAt, &a.Pending)
		all = append(all, a)
		return err
	}, "select volume_id, vm_id, position, is_read_only, mount_point, attached_at, pending from volume_attachments where "+cond+" order by vm_id, position", args...)
	if err != nil {
		return nil, q.fail(err)
	}
	return all, nil
}

// AttachVolume puts a volume on a VM, behind those that it has; Position and
// AttachedAt are set here. Who reads only may share the volume with others who do,
// if it is shareable; who writes has it alone. Errors: ErrConflict when it is
// attached in a way that excludes this one, or on this VM; ErrInvalid when a
// read-only volume is to be written to; ErrNotFound when either is gone.
func (q Queries) AttachVolume(ctx context.Context, a *mvm.VolumeAttachment) error {
	return q.tx(ctx, func(tx *Tx) error {
		v, err := tx.GetVolume(ctx, a.VolumeID)
		if err != nil {
			return err
		}
		if _, err := tx.GetVM(ctx, a.VMID); err != nil {
			return err
		}
		if err := tx.mayAttach(ctx, v, a); err != nil {
			return err
		}
		if _, err := tx.one(ctx, []any{&a.Position}, "select coalesce(max(position) + 1, 0) from volume_attachments where vm_id = ?", a.VMID); err != nil {
			return tx.fail(err)
		}
		a.AttachedAt = now()
		_, err = tx.exec(ctx, "insert into volume_attachments (volume_id, vm_id, position, is_read_only, mount_point, attached_at, pending) values (?, ?, ?, ?, ?, ?, ?)",
			a.VolumeID, a.VMID, a.Position, a.IsReadOnly, a.MountPoint, a.AttachedAt, string(a.Pending))
		return tx.fail(err)
	})
}

// mayAttach refuses what would let two VMs corrupt a volume.
func (q Queries) mayAttach(ctx context.Context, v *mvm.VolumeItem, a *mvm.VolumeAttachment) error {
	refuse := func(kind mvm.Kind, hint, format string, args ...any) error {
		return mvm.Errorf(kind, format, args...).WithHint("%s", hint).On("attach volume", v.Name)
	}
	if v.IsReadOnly && !a.IsReadOnly {
		return refuse(mvm.ErrInvalid, "attach it read-only: "+v.Name+":ro", "it is a read-only volume")
	}
	var vmName, vmID string
	var readOnly bool
	had, err := q.one(ctx, []any{&vmName, &vmID, &readOnly},
		"select m.name, m.id, a.is_read_only from volume_attachments a join vms m on m.id = a.vm_id where a.volume_id = ? order by m.id <> ?, a.is_read_only, a.attached_at",
		a.VolumeID, a.VMID)
	if err != nil {
		return q.fail(err)
	}
	detach := fmt.Sprintf("detach it with 'mvm volume detach %s %s'", vmName, v.Name)
	switch {
	case !had:
		return nil
	case vmID == a.VMID:
		return refuse(mvm.ErrConflict, detach+" to attach it in another way", "it is attached to VM %s already", mvm.Quote(vmName))
	case !v.IsShareable:
		return refuse(mvm.ErrConflict, detach+"; only volumes made with --shareable can be on several VMs", "it is attached to VM %s", mvm.Quote(vmName))
	case !readOnly:
		return refuse(mvm.ErrConflict, detach, "VM %s writes to it", mvm.Quote(vmName))
	case !a.IsReadOnly:
		return refuse(mvm.ErrConflict, "attach it read-only: "+v.Name+":ro; who writes must have it alone", "VM %s has it already", mvm.Quote(vmName))
	}
	return nil
}

// PendAttachment notes what becomes of an attachment when its VM ends or starts anew.
func (q Queries) PendAttachment(ctx context.Context, id, vmID string, change mvm.PendingChange) error {
	_, err := q.exec(ctx, "update volume_attachments set pending = ? where volume_id = ? and vm_id = ?", string(change), id, vmID)
	return q.fail(err)
}

// DetachVolume takes a volume from a VM. One that is not on it is no error.
func (q Queries) DetachVolume(ctx context.Context, id, vmID string) error {
	_, err := q.exec(ctx, "delete from volume_attachments where volume_id = ? and vm_id = ?", id, vmID)
	return q.fail(err)
}
