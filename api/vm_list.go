package api

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/store"
)

// ListAll returns all VMs, or those in the phases named, as they are now: a VM
// whose VMM has ended is stopped or crashed, whatever was written down last.
func (o *VMOperation) ListAll(ctx context.Context, phases ...mvm.VMStatus) ([]*mvm.VMInstanceItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	vms, err := st.ListVMs(ctx)
	if err != nil {
		return nil, err
	}
	o.core.observe(ctx, st, vms...)
	out := []*mvm.VMInstanceItem{}
	for _, vm := range vms {
		if len(phases) == 0 || slices.Contains(phases, vm.Status) {
			out = append(out, vm)
		}
	}
	return out, nil
}

// Get returns one VM by name, IPv4 address, MAC address or id prefix.
func (o *VMOperation) Get(ctx context.Context, in VMInput) (*mvm.VMInstanceItem, error) {
	sel, err := one("VM", in.Identifiers)
	if err != nil {
		return nil, err
	}
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.core.findVM(ctx, st, sel)
}

func (c *core) findVM(ctx context.Context, st *store.Store, selector string) (*mvm.VMInstanceItem, error) {
	vms, err := st.ListVMs(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := pick("VM", selector, "see 'mvm vm ls'", vmCandidates(vms))
	if err != nil {
		return nil, err
	}
	c.observeOne(ctx, st, vm)
	return vm, nil
}

// inspectEvents is how many of the last events of a VM inspect shows.
const inspectEvents = 20

// Inspect returns all that is known of a VM; what the guest's agent says is
// left out when it does not answer within two seconds.
func (o *VMOperation) Inspect(ctx context.Context, in VMInput) (*VMInspect, error) {
	c := o.core
	vm, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	out := &VMInspect{VM: vm, Events: []VMEvent{}}
	if err := c.resolveRelations(ctx, vm); err != nil {
		return nil, err
	}
	dir := c.paths.vm(vm.ID)
	virtual, allocated, _ := disk.Sizes(vm.RootfsPath) // problems tells when it is missing
	out.Filesystem = VMFilesystem{Directory: dir, Rootfs: vm.RootfsPath, Format: diskFormat(vm.RootfsSuffix), SizeBytes: virtual, AllocatedBytes: allocated, Initrd: filepath.Join(dir, seedName)}
	if vm.Image != nil {
		out.Filesystem.BaseImage = c.paths.abs(vm.Image.Path)
	}
	if vm.Kernel != nil {
		out.Filesystem.Kernel = c.paths.abs(vm.Kernel.Path)
	}
	out.Networking = VMNetworking{IPv4: vm.IPv4, MAC: vm.MAC, Tap: vm.TapDevice, DNS: vm.DNSServer, Published: vm.Options.Publish, Egress: mvm.EgressText(vm.Options.Egress), Isolated: vm.Options.Isolate}
	if out.Networking.Published == nil {
		out.Networking.Published = []string{}
	}
	if n := vm.Network; n != nil {
		out.Networking.Network, out.Networking.Bridge, out.Networking.Subnet, out.Networking.Gateway = n.Name, n.Bridge, n.Subnet, n.IPv4Gateway
		if n.DNSEnabled {
			out.Networking.DNS = n.IPv4Gateway
		}
	}
	taps, err := c.net.Taps(ctx)
	if err != nil {
		return nil, err
	}
	if out.Problems, err = c.problems(ctx, vm, taps); err != nil {
		return nil, err
	}
	for _, t := range taps {
		out.Networking.TapUp = out.Networking.TapUp || t.Name == vm.TapDevice && t.Up
	}
	out.Console = VMConsole{Socket: deref(vm.RelaySocketPath), Log: deref(vm.SerialOutputPath), VMMLog: deref(vm.LogPath)}
	out.Process = c.processOf(vm)
	if vm.Status == mvm.StatusRunning {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		out.Guest = c.askGuest(short, vm)
		cancel()
	}
	events, err := c.st.ListEvents(ctx, vm.ID, inspectEvents, 0)
	for _, e := range events {
		out.Events = append(out.Events, vmEvent(e))
	}
	return out, err
}

func (c *core) processOf(vm *mvm.VMInstanceItem) VMProcess {
	p := VMProcess{Hypervisor: vm.Hypervisor, Accel: vm.Accel, PID: vm.PID, Argv: []string{}}
	if vm.RelayPID != nil {
		p.SupervisorPID = *vm.RelayPID
	}
	p.Jail = jailOf(vm)
	p.Jailed = p.Jail != nil
	if vm.PID > 0 {
		p.Argv = cmdline(vm.PID)
	}
	return p
}

// resolveRelations fills in the objects that a VM refers to; one that was
// removed stays nil.
func (c *core) resolveRelations(ctx context.Context, vm *mvm.VMInstanceItem) error {
	inv, err := loadInventory(ctx, c.st)
	if err != nil {
		return err
	}
	for _, x := range inv.images {
		if x.ID == vm.ImageID {
			vm.Image = x
		}
	}
	for _, id := range vm.VolumeIDs {
		for _, x := range inv.volumes {
			if x.ID == id {
				vm.Volumes = append(vm.Volumes, x)
			}
		}
	}
	for _, x := range inv.kernels {
		if x.ID == vm.KernelID {
			vm.Kernel = x
		}
	}
	for _, x := range inv.networks {
		if x.ID == vm.NetworkID {
			if _, err := c.observeNetwork(ctx, c.st, x); err != nil {
				return err
			}
			vm.Network = x
		}
	}
	return nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
