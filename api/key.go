package api

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/key"
	"github.com/mvmctl/mvm/internal/store"
)

// defaultKeyName is the key that init makes.
const defaultKeyName = "default"

// Create makes a key pair and registers it. The private half gets mode 0600.
func (o *KeyOperation) Create(ctx context.Context, in KeyCreateInput) (*mvm.SSHKeyItem, error) {
	if err := mvm.ValidateName("key", in.Name); err != nil {
		return nil, err
	}
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	item, err := o.core.createKey(ctx, st, in)
	return item, mvm.Wrap(err, "create key", in.Name)
}

func (c *core) createKey(ctx context.Context, st *store.Store, in KeyCreateInput) (*mvm.SSHKeyItem, error) {
	dir := firstOf(in.OutputDir, c.paths.keys())
	private := filepath.Join(dir, in.Name)
	old, err := findKeyByName(ctx, st, in.Name)
	if err != nil {
		return nil, err
	}
	if !in.Overwrite {
		const hint = "choose another name, or replace it with --force"
		if old != nil {
			return nil, mvm.Errorf(mvm.ErrExists, "a key of that name exists").WithHint(hint)
		}
		for _, p := range []string{private, private + ".pub"} {
			if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
				return nil, mvm.Errorf(mvm.ErrExists, "the file %s exists", p).WithHint(hint)
			}
		}
	}
	kind := key.Kind(firstOf(in.Algorithm, string(key.ED25519)))
	pair, err := key.Generate(kind, in.Bits, firstOf(in.Comment, "mvm:"+in.Name))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot make the directory for keys: %w", err)
	}
	if in.Overwrite {
		if err := errors.Join(removeFile(private), removeFile(private+".pub")); err != nil {
			return nil, err
		}
	}
	if err := pair.Save(private); err != nil {
		return nil, err
	}
	item := &mvm.SSHKeyItem{
		ID: newID(), Name: in.Name, Fingerprint: ssh.FingerprintSHA256(pair.Public.Key), Algorithm: string(kind), Comment: pair.Public.Comment,
		PublicKeyPath: private + ".pub", PrivateKeyPath: &private, IsDefault: in.SetDefault, IsPresent: true, CreatedAt: now(), UpdatedAt: now(),
	}
	if old != nil {
		item.ID, item.CreatedAt, item.IsDefault = old.ID, old.CreatedAt, in.SetDefault || old.IsDefault
	}
	if err := st.UpsertKey(ctx, item); err != nil {
		if old == nil { // no row names the files: they would be in the way of the next try
			err = errors.Join(err, removeFile(private), removeFile(private+".pub"))
		}
		return nil, err
	}
	return item, nil
}

// ListAll returns all keys.
func (o *KeyOperation) ListAll(ctx context.Context) ([]*mvm.SSHKeyItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := st.ListKeys(ctx)
	for _, k := range keys {
		_, statErr := os.Stat(k.PublicKeyPath)
		k.IsPresent = statErr == nil
	}
	return keys, err
}

// defaultKey returns the default key, and whether it was made just now.
func (c *core) defaultKey(ctx context.Context, st *store.Store) (*mvm.SSHKeyItem, bool, error) {
	if _, k, err := findDefaultKey(ctx, st); err != nil || k != nil {
		return k, false, err
	}
	unlock, err := c.lockAsset(ctx, "default-key") // commands that start at once on an empty machine make one key
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	keys, k, err := findDefaultKey(ctx, st)
	if err != nil || k != nil {
		return k, false, err
	}
	if len(keys) == 0 {
		if k, err = c.adoptKey(ctx, st); err != nil || k != nil {
			return k, err == nil, mvm.Wrap(err, "take over key", defaultKeyName)
		}
	}
	k, err = c.createKey(ctx, st, KeyCreateInput{Name: defaultKeyName, SetDefault: true})
	return k, err == nil, mvm.Wrap(err, "create key", defaultKeyName)
}

// adoptKey registers the default key whose files are there without a row, nil when
// there are none: a crash came between the two, the database was lost, or another
// cache has the same directory of keys. Guests may know it, so it is not replaced.
func (c *core) adoptKey(ctx context.Context, st *store.Store) (*mvm.SSHKeyItem, error) {
	private := filepath.Join(c.paths.keys(), defaultKeyName)
	signer, err := key.LoadSigner(private)
	if errors.Is(err, mvm.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, mvm.Errorf(mvm.KindOf(err), "the file %s is there, but: %w", private, err).WithHint("move it away, or replace it with 'mvm key create --force --default %s'", defaultKeyName)
	}
	public := key.Public{Key: signer.PublicKey(), Comment: "mvm:" + defaultKeyName}
	if there, err := key.LoadPublic(private + ".pub"); err == nil && there.Fingerprint() == public.Fingerprint() {
		public = there
	} else if err := fsx.WriteFile(private+".pub", []byte(public.Line()+"\n"), 0o644); err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot write the public key: %w", err).WithHint("check the permissions and free space of %s", c.paths.keys())
	}
	item := &mvm.SSHKeyItem{
		ID: newID(), Name: defaultKeyName, Fingerprint: public.Fingerprint(), Algorithm: string(public.Kind()), Comment: public.Comment,
		PublicKeyPath: private + ".pub", PrivateKeyPath: &private, IsDefault: true, IsPresent: true, CreatedAt: now(), UpdatedAt: now(),
	}
	return item, st.UpsertKey(ctx, item)
}

func findDefaultKey(ctx context.Context, st *store.Store) (all []*mvm.SSHKeyItem, def *mvm.SSHKeyItem, err error) {
	all, err = st.ListKeys(ctx)
	for _, k := range all {
		if k.IsDefault {
			return all, k, err
		}
	}
	return all, nil, err
}

func findKeyByName(ctx context.Context, st *store.Store, name string) (*mvm.SSHKeyItem, error) {
	keys, err := st.ListKeys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.Name == name {
			return k, nil
		}
	}
	return nil, nil
}

// newIdentity makes the keys that a VM is known by.
func newIdentity(name string) (vmIdentity, error) {
	var id vmIdentity
	for _, k := range []struct {
		comment         string
		private, public *string
	}{
		{"root@" + name, &id.HostKey, &id.HostPublic},
		{"mvm-agent@" + name, &id.AgentKey, &id.AgentPublic},
		{"mvm-host@" + name, &id.ClientKey, &id.ClientPublic},
	} {
		pair, err := key.Generate(key.ED25519, 0, k.comment)
		if err != nil {
			return id, err
		}
		*k.private, *k.public = string(pair.Private), pair.Public.Line()
	}
	return id, nil
}
