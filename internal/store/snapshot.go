package store

import (
	"context"

	"github.com/mvmctl/mvm"
)

var snapshots = table[mvm.SnapshotItem]{
	name: "snapshots", noun: "snapshot",
	cols: []string{
		"id", "name", "vm_id", "vm_name", "hypervisor", "vmm_version", "accel", "cpu", "path", "size_bytes", "vcpu_count", "mem_size_mib",
		"source_vm", "volume_ids", "created_at", "updated_at", "quiesced_guest",
	},
	fields: func(s *mvm.SnapshotItem) []any {
		return []any{
			&s.ID, &s.Name, &s.VMID, &s.VMName, &s.Hypervisor, &s.VMMVersion, &s.Accel, &s.CPU, &s.Path, &s.SizeBytes, &s.VCPUCount, &s.MemSizeMiB,
			asJSON{&s.SourceVM}, asJSON{&s.VolumeIDs}, &s.CreatedAt, &s.UpdatedAt, &s.QuiescedGuest,
		}
	},
	stamp: func(s *mvm.SnapshotItem) []*string { return []*string{&s.CreatedAt, &s.UpdatedAt} },
	unique: map[string]taken{
		"snapshots.name": {cols: []string{"name"}, what: "a snapshot named %q exists already",
			hint: "choose another name; 'mvm snapshot ls' shows those in use"},
	},
}

// InsertSnapshot adds a snapshot. ErrExists when its name is taken.
func (q Queries) InsertSnapshot(ctx context.Context, s *mvm.SnapshotItem) error {
	return snapshots.insert(ctx, q, s)
}

// GetSnapshot returns a snapshot by id, or ErrNotFound.
func (q Queries) GetSnapshot(ctx context.Context, id string) (*mvm.SnapshotItem, error) {
	return snapshots.get(ctx, q, id)
}

// ListSnapshots returns all snapshots, oldest first.
func (q Queries) ListSnapshots(ctx context.Context) ([]*mvm.SnapshotItem, error) {
	return snapshots.where(ctx, q, "1 order by created_at, name")
}

// UpdateSnapshot writes all fields of a snapshot but CreatedAt.
func (q Queries) UpdateSnapshot(ctx context.Context, s *mvm.SnapshotItem) error {
	return snapshots.update(ctx, q, s)
}

// DeleteSnapshot removes a snapshot. One that is gone is no error.
func (q Queries) DeleteSnapshot(ctx context.Context, id string) error {
	return snapshots.remove(ctx, q, id)
}
