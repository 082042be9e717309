package cloudinit

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// Write keeps the documents in a directory, which is made if it is missing. They may
// hold secrets: only their owner can read them.
func (d Documents) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		data, ok := d[name]
		if !ok {
			if err := remove(path); err != nil {
				return err
			}
			continue
		}
		if err := fsx.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// ReadDocuments reads what Write has kept.
func ReadDocuments(dir string) (Documents, error) {
	d := Documents{}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case err == nil:
			d[name] = data
		case !errors.Is(err, os.ErrNotExist):
			return nil, mvm.Errorf(mvm.ErrBroken, "the cloud-init document %s cannot be read: %w", name, err).WithHint("remove the VM and create it anew")
		case name == MetaData || name == UserDataName:
			return nil, mvm.Errorf(mvm.ErrBroken, "the cloud-init document %s is missing in %s", name, dir).WithHint("remove the VM and create it anew")
		}
	}
	return d, nil
}
