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
