package boot

import (
	"errors"

	"github.com/mvmctl/mvm/internal/guest"
)

// seedNames are the documents that a seed can have; a name that is none of them is
// not written.
var seedNames = []string{"meta-data", "user-data", "vendor-data", "network-config"}

// PrepareCloudInit puts the seed where the image's cloud-init looks for it. A seed
// that is there already is replaced: it is the image's, or of another VM. The files
// are root's alone, for user data may hold secrets.
func PrepareCloudInit(r *Rootfs, c *guest.CloudInit) error {
	if !hasCloudInit(r) {
		return errors.New("the image has none, so nobody reads the user data")
	}
	if c.Seed == nil {
		return nil
	}
	if err := r.EnsureDir(guest.CloudInitSeed, 0o700, Owner{}); err != nil {
		return err
	}
	var errs []error
	for _, name := range seedNames {
		path := guest.CloudInitSeed + "/" + name
		if data, ok := c.Seed[name]; ok {
			errs = append(errs, r.WriteFile(path, data, 0o600, Owner{}))
		} else {
			errs = append(errs, r.Remove(path))
		}
	}
	return errors.Join(errs...)
}

func hasCloudInit(r *Rootfs) bool {
	for _, p := range []string{"/usr/bin/cloud-init", "/bin/cloud-init", "/usr/local/bin/cloud-init"} {
		if r.Executable(p) {
			return true
		}
	}
	return false
}

// leftToIfupdown says whether cloud-init has ifupdown set the interface up. ifup(8)
// fails on an address that is there already, so nobody may set it before. All other
// services that cloud-init writes configuration for take over what they find.
func leftToIfupdown(r *Rootfs, c *guest.CloudInit) bool {
	return c != nil && c.Network && hasCloudInit(r) && (r.Executable("/usr/sbin/ifup") || r.Executable("/sbin/ifup"))
}
