package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/vmm"
)

// guestVolumes are volumes of a VM, in the order of its disks, as its guest is told.
func guestVolumes(hypervisor string, volumes []vmVolume, p paths) []wire.Volume {
	out := make([]wire.Volume, 0, len(volumes))
	nth := 0
	for _, v := range volumes {
		w := wire.Volume{
			Serials: volumeSerials(volumeDiskID(v.item), p.abs(v.item.Path)), Mount: v.at.MountPoint, FSType: v.item.FSType,
			ReadOnly: v.at.IsReadOnly || v.item.IsReadOnly,
		}
		if servedTo(hypervisor, v.item) {
			w.Serials, w.Nth = []string{servedSerial}, nth
			nth++
		}
		out = append(out, w)
	}
	return out
}

// servedTo tells whether a hypervisor gets a volume from a server: Firecracker reads
// raw ones only. Such a disk is there from the VM's start to its end.
func servedTo(hypervisor string, v *mvm.VolumeItem) bool {
	return hypervisor == "firecracker" && v.Format != disk.Raw
}

// servedSerial is what every disk calls itself that qemu-storage-daemon serves
// (vu_blk_exp_create in QEMU's block/export/vhost-user-blk-server.c).
const servedSerial = "vhost_user_blk"

// volumeSerials are what a volume's disk may call itself in a guest: QEMU's has the
// id that we gave it, Firecracker's one made of the file's numbers (build_device_id
// in its src/vmm/src/devices/virtio/block/virtio/device.rs).
func volumeSerials(diskID, path string) []string {
	serials := []string{clipSerial(diskID)}
	if fi, err := os.Stat(path); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			serials = append(serials, clipSerial(fmt.Sprintf("%d%d%d", st.Dev, st.Rdev, st.Ino)))
		}
	}
	return serials
}

// clipSerial cuts a serial to what virtio has room for (VIRTIO_BLK_ID_BYTES).
func clipSerial(s string) string { return s[:min(len(s), 20)] }

// bootVolumes are the volumes that the guest mounts before its init starts.
func (p *vmPlan) bootVolumes() []wire.Volume {
	return slices.DeleteFunc(guestVolumes(p.driver.Name(), p.volumes, p.c.paths), func(v wire.Volume) bool { return v.Mount == "" })
}

// bootFSTypes are the file systems that the guest's kernel has to know, the root's
// first.
func (p *vmPlan) bootFSTypes() []string {
	types := []string{p.image.FSType}
	for _, v := range p.volumes {
		if v.item.FSType != "" {
			types = append(types, v.item.FSType)
		}
	}
	if hasISO(p.item) {
		types = append(types, cloudInitFS)
	}
	return types
}

// guestLimit is how long a guest may take to answer about a volume.
const guestLimit = 30 * time.Second

// inGuest calls do with a connection to the agent of a running VM.
func (c *core) inGuest(ctx context.Context, vm *mvm.VMInstanceItem, do func(context.Context, *guest.Client) error) error {
	if !vm.HasAgent {
		return errNoAgent
	}
	ctx, cancel := context.WithTimeout(ctx, guestLimit)
	defer cancel()
	m, err := c.attach(ctx, vm)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	login, err := c.agentLogin(vm)
	if err != nil {
		return err
	}
	client, err := guest.Dial(ctx, c.dialAgent(vm, m), login)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	defer func() { _ = client.Close() }()
	return do(ctx, client)
}

var (
	errNoAgent  = mvm.Errorf(mvm.ErrUnsupported, "the VM has no agent").WithHint("mount it in the guest by hand; VMs are made with the agent unless --no-agent is given")
	errNoAnswer = errors.New("its agent does not answer")
)

// showGuest has the guest of a running VM find a volume that was plugged in, and
// mount it where it is to be.
func (ch *volumeChange) showGuest(ctx context.Context) error {
	v := vmVolume{ch.res.Volume, ch.res.Attachment}
	if servedTo(ch.res.VM.Hypervisor, v.item) { // it neither came nor went
		return nil
	}
	err := ch.c.inGuest(ctx, ch.res.VM, func(ctx context.Context, client *guest.Client) (err error) {
		ch.res.Device, err = client.TakeVolume(ctx, guestVolumes(ch.res.VM.Hypervisor, []vmVolume{v}, ch.c.paths)[0])
		return err
	})
	switch {
	case err == nil:
		return nil
	case v.at.MountPoint != "" && errors.Is(err, errNoAgent):
		ch.res.warn("it is not mounted now: the VM has no agent; the guest mounts it when it starts the next time")
		return nil
	case v.at.MountPoint != "":
		return mvm.Errorf(mvm.ErrUnavailable, "it is attached, but not mounted: %w", err).
			WithHint("%s", firstOf(mountHint(v), "mount it in the guest by hand, or start the VM anew"))
	case needsRescan(ch.res.VM):
		ch.res.warn("the guest has to look for it: echo 1 > /sys/bus/pci/rescan")
	}
	return nil
}

// mountHint is what to do about a volume that no kernel can mount.
func mountHint(v vmVolume) string {
	if v.item.FSType != "" {
		return ""
	}
	return "mvm made no file system on it; make one in the guest, or make volumes with --mkfs"
}

// needsRescan reports whether the guest does not hear of new disks by itself.
func needsRescan(vm *mvm.VMInstanceItem) bool { return vm.Hypervisor == "firecracker" }

// releaseGuest has the guest unmount a volume that is to be taken out. Where nobody
// can ask a guest that has to let go first, the disk stays until the VM ends. A guest
// without agent that QEMU asks by itself has to have unmounted it.
func (ch *volumeChange) releaseGuest(ctx context.Context) (later bool, why string, err error) {
	vm := ch.res.VM
	if servedTo(vm.Hypervisor, ch.res.Volume) {
		return true, "a qcow2 volume is served to firecracker for as long as the VM runs", nil
	}
	if needsRescan(vm) && !vm.PCIEnabled {
		return true, "its disks are on no PCI bus, where they could be taken out", nil
	}
	asked := false
	err = ch.c.inGuest(ctx, vm, func(ctx context.Context, client *guest.Client) error {
		asked = true
		return client.ReleaseVolume(ctx, wire.VolumeRelease{
			Serials: volumeSerials(volumeDiskID(ch.res.Volume), ch.c.paths.abs(ch.res.Volume.Path)), Eject: needsRescan(vm),
		})
	})
	switch {
	case err == nil, errors.Is(err, vmm.ErrGone):
		return false, "", nil
	case asked:
		return false, "", mvm.Errorf(mvm.ErrBusy, "the guest does not release it: %w", err).WithHint("end what uses it in the guest, or stop the VM")
	case vm.HasAgent:
		return false, "", mvm.Errorf(mvm.ErrUnavailable, "nobody can tell whether the guest uses it: %w", err).
			WithHint("try again when the guest answers, stop the VM, or take it out all the same with --force")
	case needsRescan(vm):
		return true, "nobody can ask the guest to let go of it: " + err.Error(), nil
	}
	return false, "", nil // QEMU asks the guest itself
}

// mountVolumes sees that the guest has mounted its volumes, as it does when it
// starts, and tells of those that are not.
func (c *core) mountVolumes(ctx context.Context, vm *mvm.VMInstanceItem) {
	volumes, err := attachedVolumes(ctx, c.st.Queries, vm.ID)
	if err != nil {
		return
	}
	if !vm.HasAgent || !slices.ContainsFunc(volumes, func(v vmVolume) bool { return v.at.MountPoint != "" }) {
		return
	}
	told := guestVolumes(vm.Hypervisor, volumes, c.paths)
	// A guest that stops answering now was ready a moment ago: whoever waits knows.
	_ = c.inGuest(ctx, vm, func(ctx context.Context, client *guest.Client) error {
		for i, v := range volumes {
			if v.at.MountPoint == "" {
				continue
			}
			_, err := client.TakeVolume(ctx, told[i])
			if err != nil && ctx.Err() == nil {
				c.notice(notMounted(vm, v, err))
			}
		}
		return nil
	})
}

func notMounted(vm *mvm.VMInstanceItem, v vmVolume, err error) string {
	text := "volume " + v.item.Name + " is not mounted at " + v.at.MountPoint + " in " + vm.Name + ": " + err.Error()
	if hint := mountHint(v); hint != "" {
		text += " (" + hint + ")"
	}
	return text
}
