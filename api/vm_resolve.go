package api

import (
	"context"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/kernel"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/store"
)

// inventory is what the store has, read once per command.
type inventory struct {
	set      settings
	vms      []*mvm.VMInstanceItem
	networks []*mvm.NetworkItem
	images   []*mvm.ImageItem
	kernels  []*mvm.KernelItem
	keys     []*mvm.SSHKeyItem
	volumes  []*mvm.VolumeItem

	attachments []mvm.VolumeAttachment // by VM, in the order of its disks
}

func loadInventory(ctx context.Context, st *store.Store) (*inventory, error) {
	inv := &inventory{}
	var err error
	for _, load := range []func() error{
		func() (e error) { inv.set, e = loadSettings(ctx, st); return },
		func() (e error) { inv.vms, e = st.ListVMs(ctx); return },
		func() (e error) { inv.networks, e = st.ListNetworks(ctx); return },
		func() (e error) { inv.images, e = st.ListImages(ctx); return },
		func() (e error) { inv.kernels, e = st.ListKernels(ctx); return },
		func() (e error) { inv.keys, e = st.ListKeys(ctx); return },
		func() (e error) { inv.volumes, e = st.ListVolumes(ctx); return },
		func() (e error) { inv.attachments, e = st.ListAttachments(ctx); return },
	} {
		if err = load(); err != nil {
			return nil, err
		}
	}
	return inv, nil
}

func (p *vmPlan) resolveAssets(inv *inventory, in VMCreateInput) error {
	var err error
	const imageHint, kernelHint = "see 'mvm image ls', or get one with 'mvm image pull debian'", "see 'mvm kernel ls', or get one with 'mvm kernel pull debian'"
	if in.Image != "" {
		p.image, err = pick("image", imageSelector(in.Image), imageHint, imageCandidates(inv.images))
	} else {
		p.image, err = defaultOf("image", inv.images, func(i *mvm.ImageItem) bool { return i.IsDefault }, "mvm image pull debian")
	}
	if err != nil {
		return err
	}
	if in.KernelID != "" {
		p.kernel, err = pick("kernel", in.KernelID, kernelHint, kernelCandidates(inv.kernels, p.c.paths))
	} else {
		p.kernel, err = defaultOf("kernel", inv.kernels, func(k *mvm.KernelItem) bool { return k.IsDefault }, "mvm kernel pull debian")
	}
	if err != nil {
		return err
	}
	return p.checkAssets()
}

// checkAssets sees that the files behind the rows are there.
func (p *vmPlan) checkAssets() error {
	for _, f := range []struct{ what, name, path, again string }{
		{"image", p.image.Type + ":" + p.image.Version, p.image.Path, "mvm image pull --force " + p.image.Type},
		{"kernel", p.kernel.Type + ":" + p.kernel.Version, p.kernel.Path, "mvm kernel rm -f " + p.kernel.Type + ":" + p.kernel.Version + "' and 'mvm kernel pull"},
	} {
		_, err := os.Stat(p.c.paths.abs(f.path))
		if f.what == "image" && err != nil && p.c.imagePresent(p.image) {
			continue // it is compressed until the disk is made
		}
		if err != nil {
			return mvm.Errorf(mvm.ErrBroken, "the file of %s %s is missing: %w", f.what, mvm.Quote(f.name), err).WithHint("get it again with '%s'", f.again)
		}
	}
	if p.image.Arch != p.kernel.Arch {
		return mvm.Errorf(mvm.ErrInvalid, "image %s is for %s, kernel %s for %s", mvm.Quote(p.image.Name), p.image.Arch, mvm.Quote(p.kernel.Name), p.kernel.Arch).
			WithHint("choose a kernel for %s with --kernel", p.image.Arch)
	}
	return p.checkRootFS()
}

// checkRootFS refuses a kernel that is known not to mount the image's file system. Every
// kernel mounts ext4.
func (p *vmPlan) checkRootFS() error {
	fsType := p.image.FSType
	if fsType != "xfs" && fsType != "btrfs" {
		return nil
	}
	can, known := kernel.Mounts(p.c.paths.abs(p.kernel.Path), p.c.paths.abs(p.kernel.ModulesPath), fsType)
	if can || !known {
		return nil
	}
	return mvm.Errorf(mvm.ErrUnsupported, "image %s is a %s, which kernel %s cannot mount", mvm.Quote(p.image.Name), fsType, mvm.Quote(p.kernel.Name)).
		WithHint("choose another --kernel; 'mvm kernel pull debian' gets one that can, 'mvm kernel pull official --features %s' builds one", fsType)
}

// defaultOf returns the default object, or the only one there is.
func defaultOf[T any](what string, all []T, isDefault func(T) bool, get string) (T, error) {
	var zero T
	for _, x := range all {
		if isDefault(x) {
			return x, nil
		}
	}
	switch len(all) {
	case 0:
		return zero, mvm.Errorf(mvm.ErrNotFound, "there is no %s yet", what).WithHint("get one with '%s', or set the machine up with 'mvm init'", get)
	case 1:
		return all[0], nil
	}
	return zero, mvm.Errorf(mvm.ErrNotFound, "no %s was named and none is the default", what).WithHint("name one with --%s, or choose one with 'mvm %s default'", what, what)
}

func (p *vmPlan) resolveKeys(inv *inventory, names []string) error {
	var chosen []*mvm.SSHKeyItem
	for _, n := range names {
		k, err := pickKey(n, "see 'mvm key ls', or make one with 'mvm key create "+n+"'", inv.keys)
		if err != nil {
			return err
		}
		chosen = append(chosen, k)
	}
	if len(names) == 0 {
		for _, k := range inv.keys {
			if k.IsDefault {
				chosen = append(chosen, k)
			}
		}
	}
	return p.useKeys(chosen)
}

// useKeys reads the public keys that the guest will accept.
func (p *vmPlan) useKeys(keys []*mvm.SSHKeyItem) error {
	p.item.SSHKeys = []string{}
	for _, k := range keys {
		data, err := os.ReadFile(k.PublicKeyPath)
		if err != nil {
			return mvm.Errorf(mvm.ErrBroken, "the public key %s cannot be read: %w", mvm.Quote(k.Name), err).WithHint("make it again with 'mvm key create -f %s'", k.Name)
		}
		p.keyLines = append(p.keyLines, strings.TrimSpace(string(data)))
		p.item.SSHKeys = append(p.item.SSHKeys, k.Name)
	}
	return nil
}

func (p *vmPlan) resolveNetwork(inv *inventory, in VMCreateInput) error {
	var err error
	name := firstOf(in.NetworkName, p.set.str("defaults.network", "name"))
	if in.NetworkName == "" {
		for _, n := range inv.networks {
			if n.IsDefault {
				p.network = n
			}
		}
	}
	if p.network == nil {
		if p.network, err = pick("network", name, "see 'mvm network ls'", networkCandidates(inv.networks)); err != nil {
			return err
		}
	}
	if in.RequestedGuestIP != "" {
		if p.wantIP, err = netip.ParseAddr(in.RequestedGuestIP); err != nil {
			return mvm.Errorf(mvm.ErrInvalid, "%s is not an IP address", mvm.Quote(in.RequestedGuestIP)).WithHint("choose one in %s, or leave --ip out", p.network.Subnet)
		}
		if _, err := chooseIP(p.network, p.network.Leases, p.wantIP); err != nil {
			return err
		}
	}
	if in.RequestedMAC != "" {
		mac, err := mvm.ParseGuestMAC(in.RequestedMAC)
		if err != nil {
			return err
		}
		p.item.MAC = strings.ToUpper(mac.String())
		return nil
	}
	mac, err := network.GuestMAC(p.set.str("defaults.vm", "guest_mac_prefix"), p.item.ID, 0)
	p.item.MAC = strings.ToUpper(mac.String())
	return err
}

// defaultDiskMiB is the size of a disk where none is asked for and the image is
// smaller: room to work in, which costs nothing until it is used.
const defaultDiskMiB = 2048

// resolveDisk chooses the disk's size: what was asked for, which must not be less
// than the image's own, or the default.
func (p *vmPlan) resolveDisk(size string) error {
	p.item.DiskSizeMiB = max(p.image.MinimumRootfsSizeMiB, int((p.image.OriginalSize+(1<<20)-1)>>20))
	if size == "" {
		p.item.DiskSizeMiB = max(p.item.DiskSizeMiB, defaultDiskMiB)
		return nil
	}
	bytes, err := mvm.ParseSize(size)
	if err != nil {
		return err
	}
	mib := int(bytes >> 20)
	switch {
	case mib < p.item.DiskSizeMiB:
		return mvm.Errorf(mvm.ErrInvalid, "a disk of %d MiB is smaller than image %s, which has %d", mib, mvm.Quote(p.image.Type+":"+p.image.Version), p.item.DiskSizeMiB).
			WithHint("set --disk-size to %dM or more, or leave it out", p.item.DiskSizeMiB)
	case mib > mvm.MaxDiskMiB:
		return mvm.Errorf(mvm.ErrInvalid, "a disk of %d MiB is larger than the largest file system", mib).WithHint("set --disk-size to less than 16T")
	}
	p.item.DiskSizeMiB = mib
	return nil
}

func (p *vmPlan) resolveDriver(ctx context.Context, st *store.Store, in VMCreateInput) error {
	want := firstOf(in.Hypervisor, p.set.str("settings.vm", "hypervisor"), "auto")
	d, probe, binary, err := p.c.chooseDriverFor(ctx, st, p.kernel, want, in.FirecrackerBin, in.BinaryID)
	if err != nil {
		return err
	}
	p.driver, p.probe = d, probe
	if binary != nil {
		p.item.BinaryID = binary.ID
	}
	return nil
}

var userRE = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// validateUser holds a user name to what useradd(8) accepts.
func validateUser(name string) error {
	if !userRE.MatchString(name) {
		return mvm.Errorf(mvm.ErrInvalid, "%s is not a user name", mvm.Quote(name)).WithHint("use lower-case letters, digits, '-' and '_', such as root or debian")
	}
	return nil
}
