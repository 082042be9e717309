package api

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/key"
	"github.com/mvmctl/mvm/internal/store"
)

// Get returns one key.
func (o *KeyOperation) Get(ctx context.Context, in KeyInput) (*mvm.SSHKeyItem, error) {
	sel, err := one("key", in.Identifiers)
	if err != nil {
		return nil, err
	}
	keys, err := o.ListAll(ctx)
	if err != nil {
		return nil, err
	}
	return pickKey(sel, "see 'mvm key ls'", keys)
}

// Inspect returns a key with its files and the VMs that were created with it.
func (o *KeyOperation) Inspect(ctx context.Context, in KeyInput) (*KeyInspect, error) {
	k, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	users, err := o.core.keyUsers(ctx, k)
	if err != nil {
		return nil, err
	}
	out := &KeyInspect{
		Key: k, VMs: users, Timestamps: KeyTimestamps{k.CreatedAt, k.UpdatedAt},
		Files: KeyFiles{PublicKeyPath: k.PublicKeyPath, PublicKeyExists: k.IsPresent, PrivateKeyPath: k.PrivateKeyPath},
	}
	if k.PrivateKeyPath != nil {
		_, err := os.Stat(*k.PrivateKeyPath)
		out.Files.PrivateKeyExists = err == nil
	}
	if public, err := key.LoadPublic(k.PublicKeyPath); err == nil {
		out.Files.PublicKey, out.Files.Bits = public.Line(), public.Bits()
	}
	return out, nil
}

// keyUsers names the VMs that were created with a key.
func (c *core) keyUsers(ctx context.Context, k *mvm.SSHKeyItem) ([]string, error) {
	vms, err := c.st.ListVMs(ctx)
	names := []string{}
	for _, v := range vms {
		if slices.Contains(v.SSHKeys, k.Name) {
			names = append(names, v.Name)
		}
	}
	return names, err
}

// SetDefault makes exactly these keys the default ones, which go into every new
// VM, and returns them.
func (o *KeyOperation) SetDefault(ctx context.Context, in KeyInput) ([]*mvm.SSHKeyItem, error) {
	if len(in.Identifiers) == 0 {
		return nil, mvm.Errorf(mvm.ErrInvalid, "no key was named").WithHint("name one or more, or clear the defaults with 'mvm key default --clear'")
	}
	var ids []string
	for _, sel := range in.Identifiers {
		k, err := o.Get(ctx, KeyInput{[]string{sel}})
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ids, k.ID) {
			ids = append(ids, k.ID)
		}
	}
	if err := o.core.st.SetDefaultKeys(ctx, ids...); err != nil {
		return nil, err
	}
	return o.GetDefaults(ctx)
}

// GetDefaults returns the keys that go into every new VM.
func (o *KeyOperation) GetDefaults(ctx context.Context) ([]*mvm.SSHKeyItem, error) {
	keys, err := o.ListAll(ctx)
	return slices.DeleteFunc(keys, func(k *mvm.SSHKeyItem) bool { return !k.IsDefault }), err
}

// ClearDefaults leaves no key a default one.
func (o *KeyOperation) ClearDefaults(ctx context.Context) error {
	st, err := o.core.open(ctx)
	if err != nil {
		return err
	}
	return st.SetDefaultKeys(ctx)
}

// Remove removes keys, and their files where these are in mvm's own directory. A
// key that VMs were created with is kept unless force is set: whoever has no
// other key cannot log in to them any more.
func (o *KeyOperation) Remove(ctx context.Context, in KeyInput, force bool) (mvm.Batch[*mvm.SSHKeyItem], error) {
	var batch mvm.Batch[*mvm.SSHKeyItem]
	if len(in.Identifiers) == 0 {
		return batch, mvm.Errorf(mvm.ErrInvalid, "no key was named").WithHint("name one or more; see 'mvm key ls'")
	}
	for _, sel := range in.Identifiers {
		k, err := o.Get(ctx, KeyInput{[]string{sel}})
		if err == nil {
			err = mvm.Wrap(o.core.removeKey(ctx, k, force), "remove key", k.Name)
		}
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.SSHKeyItem]{Identifier: sel, Item: k, Err: err})
	}
	return batch, batch.Err()
}

func (c *core) removeKey(ctx context.Context, k *mvm.SSHKeyItem, force bool) error {
	// The files go last: a file without a row is in nobody's way but that of a new
	// key of the name, which says so; a row without its file would be a lie.
	err := c.st.Tx(ctx, func(tx *store.Tx) error {
		vms, err := tx.ListVMs(ctx)
		if err != nil {
			return err
		}
		var users []string
		for _, v := range vms {
			if slices.Contains(v.SSHKeys, k.Name) {
				users = append(users, v.Name)
			}
		}
		if len(users) > 0 && !force {
			return mvm.Errorf(mvm.ErrConflict, "%s was created with it", strings.Join(users, ", ")).
				WithHint("use --force if you can log in with another key, or never will")
		}
		return tx.DeleteKey(ctx, k.ID)
	})
	if err != nil {
		return err
	}
	return c.dropKeyFiles(k, nil)
}

// Export writes both halves of a key into a directory, which is made if it is
// not there, as NAME and NAME.pub. Where the private half is not on this host,
// the public one is written alone. mvm.ErrExists, before anything is written,
// when a file is there already and overwrite is not set.
func (o *KeyOperation) Export(ctx context.Context, in KeyInput, destination string, overwrite bool) (*KeyExport, error) {
	k, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	out, err := o.core.exportKey(k, destination, overwrite)
	return out, mvm.Wrap(err, "export key", k.Name)
}

func (c *core) exportKey(k *mvm.SSHKeyItem, destination string, overwrite bool) (*KeyExport, error) {
	dir, err := filepath.Abs(firstOf(destination, "."))
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "cannot resolve %s: %w", destination, err).WithHint("name the directory by its absolute path")
	}
	out := &KeyExport{PublicKeyPath: filepath.Join(dir, k.Name+".pub")}
	type half struct {
		from, to string
		mode     fs.FileMode
		data     []byte
	}
	halves := []*half{{from: k.PublicKeyPath, to: out.PublicKeyPath, mode: 0o644}}
	if k.PrivateKeyPath != nil {
		to := filepath.Join(dir, k.Name)
		out.PrivateKeyPath = &to
		halves = append(halves, &half{from: *k.PrivateKeyPath, to: to, mode: 0o600})
	}
	for _, h := range halves {
		if h.data, err = os.ReadFile(h.from); err != nil {
			return nil, mvm.Errorf(mvm.ErrBroken, "its file cannot be read: %w", err).WithHint("remove the key with 'mvm key rm %s'", k.Name)
		}
		there, err := os.Lstat(h.to)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if sameFile(h.from, h.to) {
			return nil, mvm.Errorf(mvm.ErrInvalid, "%s is the key's own file", h.to).WithHint("choose another directory")
		}
		if !overwrite || err != nil || there.IsDir() {
			return nil, mvm.Errorf(mvm.ErrExists, "%s exists", h.to).WithHint("choose another directory, or replace it with --force")
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot make the directory: %w", err).WithHint("choose another directory")
	}
	for _, h := range halves {
		if err := fsx.WriteFile(h.to, h.data, h.mode); err != nil {
			return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot write: %w", err).WithHint("check the permissions and free space of %s", dir)
		}
	}
	return out, nil
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
