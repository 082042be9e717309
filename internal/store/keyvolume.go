package store

import (
	"context"

	"github.com/mvmctl/mvm"
)

var keys = table[mvm.SSHKeyItem]{
	name: "ssh_keys", noun: "SSH key",
	cols: []string{"id", "name", "fingerprint", "algorithm", "comment", "public_key_path", "is_default", "is_present", "created_at", "updated_at", "private_key_path"},
	fields: func(k *mvm.SSHKeyItem) []any {
		return []any{&k.ID, &k.Name, &k.Fingerprint, &k.Algorithm, &k.Comment, &k.PublicKeyPath, &k.IsDefault, &k.IsPresent, &k.CreatedAt, &k.UpdatedAt, &k.PrivateKeyPath}
	},
	stamp: func(k *mvm.SSHKeyItem) []*string { return []*string{&k.CreatedAt, &k.UpdatedAt} },
	unique: map[string]taken{
		"ssh_keys.name": {cols: []string{"name"}, what: "an SSH key named %q exists already",
			hint: "choose another name; 'mvm key ls' shows those in use"},
		"ssh_keys.fingerprint": {cols: []string{"fingerprint"}, what: "the key %s is known already",
			owner: `select 'the name "' || name || '"' from ssh_keys where fingerprint = ?`, hint: "use it by that name"},
	},
}

// InsertKey adds an SSH key. ErrExists when its name or fingerprint is known.
func (q Queries) InsertKey(ctx context.Context, k *mvm.SSHKeyItem) error {
	return keys.insert(ctx, q, k)
}

// UpsertKey adds an SSH key or replaces the one with its id.
func (q Queries) UpsertKey(ctx context.Context, k *mvm.SSHKeyItem) error {
	return keys.upsert(ctx, q, k)
}

// GetKey returns an SSH key by id, or ErrNotFound.
func (q Queries) GetKey(ctx context.Context, id string) (*mvm.SSHKeyItem, error) {
	return keys.get(ctx, q, id)
}

// ListKeys returns the SSH keys by name.
func (q Queries) ListKeys(ctx context.Context) ([]*mvm.SSHKeyItem, error) {
	return keys.where(ctx, q, "1 order by name")
}

// UpdateKey writes all fields of an SSH key but CreatedAt.
func (q Queries) UpdateKey(ctx context.Context, k *mvm.SSHKeyItem) error {
	return keys.update(ctx, q, k)
}

// DeleteKey removes an SSH key. One that is gone is no error.
func (q Queries) DeleteKey(ctx context.Context, id string) error { return keys.remove(ctx, q, id) }

// SetDefaultKeys makes exactly these SSH keys the default ones; none clears
// them. ErrNotFound, and nothing is changed, when one does not exist.
func (q Queries) SetDefaultKeys(ctx context.Context, ids ...string) error {
	return q.tx(ctx, func(tx *Tx) error {
		for _, id := range ids { // first, for a transaction that goes on after the error
			if _, err := tx.GetKey(ctx, id); err != nil {
				return err
			}
		}
		if _, err := tx.exec(ctx, "update ssh_keys set is_default = 0, updated_at = ? where is_default", now()); err != nil {
			return tx.fail(err)
		}
		for _, id := range ids {
			if err := keys.setDefault(ctx, tx.Queries, id); err != nil {
				return err
			}
		}
		return nil
	})
}

var volumes = table[mvm.VolumeItem]{
	name: "volumes", noun: "volume",
	cols: []string{"id", "name", "size_bytes", "format", "path", "status", "vm_id", "created_at", "updated_at", "is_read_only"},
	fields: func(v *mvm.VolumeItem) []any {
		return []any{&v.ID, &v.Name, &v.SizeBytes, &v.Format, &v.Path, &v.Status, &v.VMID, &v.CreatedAt, &v.UpdatedAt, &v.IsReadOnly}
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

// UpdateVolume writes all fields of a volume but CreatedAt.
func (q Queries) UpdateVolume(ctx context.Context, v *mvm.VolumeItem) error {
	return volumes.update(ctx, q, v)
}

// DeleteVolume removes a volume. One that is gone is no error.
func (q Queries) DeleteVolume(ctx context.Context, id string) error {
	return volumes.remove(ctx, q, id)
}

// AttachVolume gives an available volume to a VM. ErrConflict when it is
// attached already, ErrNotFound when it is gone.
func (q Queries) AttachVolume(ctx context.Context, id, vmID string) error {
	n, err := q.exec(ctx, "update volumes set vm_id = ?, status = 'attached', updated_at = ? where id = ? and status = 'available'", vmID, now(), id)
	if err != nil || n > 0 {
		return q.fail(err)
	}
	v, err := q.GetVolume(ctx, id)
	if err != nil {
		return err
	}
	return mvm.Errorf(mvm.ErrConflict, "it is attached already").WithHint("detach it first").On("attach the volume", v.Name)
}

// DetachVolume takes a volume from whatever VM has it.
func (q Queries) DetachVolume(ctx context.Context, id string) error {
	_, err := q.exec(ctx, "update volumes set vm_id = null, status = 'available', updated_at = ? where id = ?", now(), id)
	return q.fail(err)
}
