package api

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/key"
	"github.com/mvmctl/mvm/internal/store"
)

// Add takes a copy of a .pub file and registers it. A private key beside it, of
// the same name without ".pub", stays where it is and is used to log in when it
// belongs to the public one and has no passphrase.
//
// mvm.ErrInvalid for what is no public key, for a private one and a weak one;
// mvm.ErrExists for a name that is taken, without Overwrite, and for a key that
// is known by another name.
func (o *KeyOperation) Add(ctx context.Context, in KeyAddInput) (*mvm.SSHKeyItem, error) {
	if err := mvm.ValidateName("key", in.Name); err != nil {
		return nil, err
	}
	public, err := key.LoadPublic(in.PublicKeyPath)
	if err != nil {
		return nil, mvm.Wrap(err, "import key", in.Name)
	}
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	item, err := o.core.addKey(ctx, st, in, public)
	return item, mvm.Wrap(err, "import key", in.Name)
}

func (c *core) addKey(ctx context.Context, st *store.Store, in KeyAddInput, public key.Public) (*mvm.SSHKeyItem, error) {
	unlock, err := c.lockAsset(ctx, "key-"+in.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	private, err := privateOf(in.PublicKeyPath, public)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.paths.keys(), in.Name+".pub")
	if err := os.MkdirAll(c.paths.keys(), 0o700); err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot make the directory for keys: %w", err).WithHint("check the permissions of %s", c.paths.config)
	}
	item := &mvm.SSHKeyItem{
		ID: newID(), Name: in.Name, Fingerprint: public.Fingerprint(), Algorithm: string(public.Kind()), Comment: public.Comment,
		PublicKeyPath: path, PrivateKeyPath: private, IsDefault: in.SetDefault, IsPresent: true, CreatedAt: now(), UpdatedAt: now(),
	}
	var old *mvm.SSHKeyItem
	// The file is written last in the transaction: what the store refuses leaves
	// the old file, and a file that cannot be written leaves the old row.
	err = st.Tx(ctx, func(tx *store.Tx) error {
		if old, err = c.keyToReplace(ctx, tx, in.Name, path, in.Overwrite); err != nil {
			return err
		}
		if old != nil {
			item.ID, item.CreatedAt, item.IsDefault = old.ID, old.CreatedAt, in.SetDefault || old.IsDefault
		}
		if err := tx.UpsertKey(ctx, item); err != nil {
			return err
		}
		if err := fsx.WriteFile(path, []byte(public.Line()+"\n"), 0o644); err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "cannot write the public key: %w", err).WithHint("check the permissions and free space of %s", c.paths.keys())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if old != nil { // its private half is nobody's any more
		return item, c.dropKeyFiles(old, item)
	}
	return item, nil
}

// keyToReplace returns the key that has the name, if it may be replaced.
func (c *core) keyToReplace(ctx context.Context, tx *store.Tx, name, path string, overwrite bool) (*mvm.SSHKeyItem, error) {
	keys, err := tx.ListKeys(ctx)
	if err != nil {
		return nil, err
	}
	const hint = "choose another name, or replace it with --force"
	for _, k := range keys {
		if k.Name != name {
			continue
		}
		if !overwrite {
			return nil, mvm.Errorf(mvm.ErrExists, "a key of that name exists").WithHint(hint)
		}
		return k, nil
	}
	if _, err := os.Lstat(path); !overwrite && !errors.Is(err, fs.ErrNotExist) {
		return nil, mvm.Errorf(mvm.ErrExists, "the file %s exists", path).WithHint(hint)
	}
	return nil, nil
}

// privateOf returns the absolute path of the private key beside a public one, or
// nil when there is none that can be used.
func privateOf(publicPath string, public key.Public) (*string, error) {
	beside, isPub := strings.CutSuffix(publicPath, ".pub")
	if !isPub {
		return nil, nil
	}
	signer, err := key.LoadSigner(beside)
	if err != nil || !bytes.Equal(signer.PublicKey().Marshal(), public.Key.Marshal()) {
		return nil, nil //nolint:nilerr // the public half is all that was asked for
	}
	abs, err := filepath.Abs(beside)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot resolve %s: %w", beside, err).WithHint("name the file by its absolute path")
	}
	return &abs, nil
}

// dropKeyFiles removes the files of a key that are ours, but for those that the
// key which replaces it (nil for none) has. Files elsewhere belong to the user.
func (c *core) dropKeyFiles(k, by *mvm.SSHKeyItem) error {
	var errs []error
	for _, f := range []string{deref(k.PrivateKeyPath), k.PublicKeyPath} {
		if filepath.Dir(f) != c.paths.keys() || by != nil && (f == by.PublicKeyPath || f == deref(by.PrivateKeyPath)) {
			continue
		}
		if err := removeFile(f); err != nil {
			errs = append(errs, mvm.Errorf(mvm.ErrUnavailable, "cannot remove %s: %w", f, err).WithHint("remove it by hand"))
		}
	}
	return errors.Join(errs...)
}
