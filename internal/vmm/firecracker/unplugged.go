package firecracker

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
)

// unpluggedFile, in the VM's directory, names the VMM that a disk was taken out of.
const unpluggedFile = "firecracker.unplugged"

// noteUnplug writes down, before a disk is taken out, that the addresses of the VMM and
// its guest do not agree from then on. Firecracker 1.16 does not use the address range
// of a device that was taken out again (device_manager/pci_mngr.rs), while Linux gives
// a device that it finds the lowest that is free, and the device cannot be moved
// (pci/configuration.rs: "no BAR relocation support"). A disk that is plugged in later
// never works in the guest.
func (m *machine) noteUnplug() error {
	data, err := json.Marshal(m.handle.VMM)
	if err != nil {
		return err
	}
	if err := fsx.WriteFile(filepath.Join(m.handle.Dir, unpluggedFile), data, 0o600); err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "note that a disk is taken out: %w", err).WithHint("see whether %s can be written to", m.handle.Dir)
	}
	return nil
}

// addressesAgree refuses to plug a disk into a VM that one was taken out of. The note of
// a VMM that has ended counts no more.
func (m *machine) addressesAgree() error {
	data, err := os.ReadFile(filepath.Join(m.handle.Dir, unpluggedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("see whether the VM's directory can be read")
	}
	var of proc.Identity
	if json.Unmarshal(data, &of) == nil && of != m.handle.VMM {
		return nil
	}
	return mvm.Errorf(mvm.ErrUnsupported, "firecracker plugs no disk into a VM that one was taken out of since it started: the guest would look for it at a wrong address").
		WithHint("stop the VM, attach the disk, and start it again")
}
