package api

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cloudinit"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/kernel"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// cloudInitDir is the directory of a VM's documents, in the VM's own.
const cloudInitDir = "cloud-init"

// cloudInitFS is the file system of an ISO with documents.
const cloudInitFS = "iso9660"

// cloudInitPlan is what is only known while a VM is made.
type cloudInitPlan struct {
	data *cloudinit.UserData // nil for none
	iso  string              // the user's own, absolute
	port int                 // of the server; 0 takes a free one
}

// cloudInitMode is the mode that was asked for, or the one that what was given is
// for.
func (in VMCreateInput) cloudInitMode() mvm.CloudInitMode {
	switch {
	case in.CloudInitMode != "":
		return in.CloudInitMode
	case in.CloudInitISOPath != "" || in.KeepCloudInitISO:
		return mvm.CloudInitISO
	case in.NocloudNetPort != nil:
		return mvm.CloudInitNet
	case in.CustomUserData != "" || in.SkipCINetworkConfig:
		return mvm.CloudInitInject
	}
	return mvm.CloudInitOff
}

// validateCloudInit refuses a mode that is none, and what does not belong to it.
func (in VMCreateInput) validateCloudInit() error {
	mode := in.cloudInitMode()
	all := []mvm.CloudInitMode{mvm.CloudInitInject, mvm.CloudInitISO, mvm.CloudInitNet, mvm.CloudInitOff}
	if !slices.Contains(all, mode) {
		return mvm.Errorf(mvm.ErrInvalid, "%s is no cloud-init mode", mvm.Quote(clip(string(mode)))).WithHint("use inject, iso, net or off")
	}
	for _, x := range []struct {
		given bool
		what  string
		modes []mvm.CloudInitMode
	}{
		{in.CustomUserData != "", "user data", all[:3]},
		{in.SkipCINetworkConfig, "leaving the network alone", all[:3]},
		{in.KeepCloudInitISO, "keeping the ISO", all[1:2]},
		{in.CloudInitISOPath != "", "an ISO", all[1:2]},
		{in.NocloudNetPort != nil, "a NoCloud port", all[2:3]},
	} {
		if x.given && !slices.Contains(x.modes, mode) {
			return mvm.Errorf(mvm.ErrInvalid, "the cloud-init mode %s has no use for %s", mode, x.what).WithHint("use --cloud-init-mode %s", x.modes[0])
		}
	}
	if in.CloudInitISOPath != "" && in.CustomUserData != "" {
		return mvm.Errorf(mvm.ErrInvalid, "there is user data in the ISO and beside it").WithHint("give one of the two")
	}
	if p := in.NocloudNetPort; p != nil && (*p < 0 || *p > 65535) {
		return mvm.Errorf(mvm.ErrInvalid, "%d is no port", *p).WithHint("leave --nocloud-net-port out to get a free one")
	}
	return nil
}

// clip shortens what is only quoted in an error.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// resolveCloudInit reads and checks what a new VM's cloud-init is to be told.
func (p *vmPlan) resolveCloudInit(inv *inventory, in VMCreateInput) error {
	it, mode := p.item, in.cloudInitMode()
	it.CloudInitMode = mode
	if mode == mvm.CloudInitOff {
		return nil
	}
	o := &mvm.VMCloudInit{NoNetwork: in.SkipCINetworkConfig, KeepISO: in.KeepCloudInitISO}
	it.Options.CloudInit = o
	if in.CustomUserData != "" {
		var err error
		if p.cloudInit.data, err = cloudinit.ReadUserData(in.CustomUserData); err != nil {
			return err
		}
	}
	switch mode {
	case mvm.CloudInitISO:
		o.ISO = p.set.str("defaults.cloudinit", "iso_name")
		if err := checkFileName(o.ISO); err != nil {
			return err
		}
		if err := p.resolveISO(in.CloudInitISOPath); err != nil {
			return err
		}
	case mvm.CloudInitNet:
		if in.NocloudNetPort != nil && *in.NocloudNetPort > 0 {
			p.cloudInit.port = *in.NocloudNetPort
			return p.checkPort(inv)
		}
	}
	return nil
}

// resolveISO checks the user's own ISO, if there is one, and that the guest's kernel
// can read any.
func (p *vmPlan) resolveISO(path string) error {
	if can, known := kernel.Mounts(p.c.paths.abs(p.kernel.Path), p.c.paths.abs(p.kernel.ModulesPath), cloudInitFS); known && !can {
		return mvm.Errorf(mvm.ErrUnsupported, "kernel %s cannot read an ISO", mvm.Quote(p.kernel.Name)).WithHint("use --cloud-init-mode inject or net, or another --kernel")
	}
	if path == "" {
		return nil
	}
	if err := cloudinit.CheckISO(path); err != nil {
		return err
	}
	p.item.Options.CloudInit.OwnISO = true
	var err error
	p.cloudInit.iso, err = filepath.Abs(path)
	return err
}

// checkPort refuses a port that was asked for and can never be had.
func (p *vmPlan) checkPort(inv *inventory) error {
	port := p.cloudInit.port
	first, last := p.portRange()
	if port < first || port > last {
		return mvm.Errorf(mvm.ErrInvalid, "the NoCloud port %d is outside of %d to %d", port, first, last).
			WithHint("choose another, or change nocloud_port_range_start and nocloud_port_range_end in defaults.cloudinit")
	}
	return portOfVM(port, inv.vms)
}

// portOfVM refuses a port that a VM has.
func portOfVM(port int, vms []*mvm.VMInstanceItem) error {
	for _, vm := range vms {
		if vm.NocloudNetPort != nil && *vm.NocloudNetPort == port {
			return mvm.Errorf(mvm.ErrExists, "the NoCloud port %d is used by VM %s", port, mvm.Quote(vm.Name)).
				WithHint("choose another with --nocloud-net-port, or leave it out to get a free one")
		}
	}
	return nil
}

func (p *vmPlan) portRange() (first, last int) {
	return p.set.num("defaults.cloudinit", "nocloud_port_range_start"), p.set.num("defaults.cloudinit", "nocloud_port_range_end")
}

// reservePort gives the VM's server a port that no other VM and no program has: the
// one asked for, or the lowest.
func (p *vmPlan) reservePort(ctx context.Context, tx *store.Tx) error {
	it := p.item
	if it.CloudInitMode != mvm.CloudInitNet {
		it.NocloudNetPort = nil
		return nil
	}
	gateway, err := netip.ParseAddr(p.network.IPv4Gateway)
	if err != nil {
		return mvm.Errorf(mvm.ErrBroken, "stored gateway %s: %w", mvm.Quote(p.network.IPv4Gateway), err)
	}
	free := func(port int) error {
		return cloudinit.PortFree(ctx, netip.AddrPortFrom(gateway, uint16(port))) //nolint:gosec // a port
	}
	vms, err := tx.ListVMs(ctx)
	if err != nil {
		return err
	}
	vms = slices.DeleteFunc(vms, func(vm *mvm.VMInstanceItem) bool { return vm.ID == it.ID })
	// Whether a port is free is seen by listening there for a moment: never on one that
	// another VM has, whose server may be about to.
	if port := p.cloudInit.port; port > 0 {
		it.NocloudNetPort = &port
		if err := portOfVM(port, vms); err != nil {
			return err
		}
		return free(port)
	}
	first, last := p.portRange()
	for port := first; port <= last; port++ {
		if portOfVM(port, vms) == nil && free(port) == nil {
			it.NocloudNetPort = &port
			return nil
		}
	}
	return mvm.Errorf(mvm.ErrUnavailable, "no NoCloud port from %d to %d is free", first, last).
		WithHint("raise nocloud_port_range_end in defaults.cloudinit, or use --cloud-init-mode inject")
}

// reservePortOf is reservePort for a VM that is in the database: it keeps its port,
// unless a program has taken it meanwhile.
func (p *vmPlan) reservePortOf(ctx context.Context, tx *store.Tx) error {
	it := p.item
	if it.CloudInitMode != mvm.CloudInitNet || p.restore != nil {
		return nil
	}
	had := it.NocloudNetPort
	if had != nil {
		gateway, err := netip.ParseAddr(p.network.IPv4Gateway)
		if err == nil && cloudinit.PortFree(ctx, netip.AddrPortFrom(gateway, uint16(*had))) == nil { //nolint:gosec // a port
			return nil
		}
		if ids, err := proc.FindByArg(cloudinit.Token(it.ID)); err == nil && len(ids) > 0 {
			return nil // it is its own server of the last run, which is ended first
		}
	}
	if err := p.reservePort(ctx, tx); err != nil {
		return err
	}
	vm, err := tx.GetVM(ctx, it.ID)
	if err != nil {
		return err
	}
	vm.NocloudNetPort = it.NocloudNetPort
	return tx.UpdateVM(ctx, vm)
}

// cloudInitNetwork is the guest's network in cloud-init's words.
func (p *vmPlan) cloudInitNetwork() *cloudinit.Network {
	n := &cloudinit.Network{MAC: p.item.MAC, Gateway: p.network.IPv4Gateway, DNS: p.dnsServers()}
	if subnet, err := netip.ParsePrefix(p.network.Subnet); err == nil { // bootConfig says what is wrong with it
		n.Address = p.item.IPv4 + "/" + strconv.Itoa(subnet.Bits())
	}
	return n
}

// dnsServers are those that the guest asks: its network's own, which knows the other
// VMs, or where that is off, those that it was made with.
func (p *vmPlan) dnsServers() []string {
	if p.network.DNSEnabled {
		return []string{p.network.IPv4Gateway}
	}
	return serversOf(p.item.DNSServer)
}

// cloudInitDocuments makes the documents of a VM.
func (p *vmPlan) cloudInitDocuments() (cloudinit.Documents, error) {
	in := cloudinit.Instance{ID: p.item.ID, Hostname: p.item.Name, User: *p.item.SSHUser, Keys: p.keyLines}
	if !p.item.Options.CloudInit.NoNetwork {
		in.Network = p.cloudInitNetwork()
	}
	return cloudinit.Render(in, p.cloudInit.data)
}

// cloudInitArgs are the kernel's arguments for cloud-init. A VM without it has it
// switched off: an image's own would search for a datasource, for minutes on some.
// Whoever passes arguments of that kind is let do as they please.
func (p *vmPlan) cloudInitArgs() []string {
	it := p.item
	o := it.Options.CloudInit
	if it.CloudInitMode == mvm.CloudInitOff || o == nil {
		for word := range strings.FieldsSeq(deref(it.BootArgs)) {
			if key, _, _ := strings.Cut(word, "="); slices.Contains([]string{"cloud-init", "ds", "ci.ds", "ci.datasource"}, key) {
				return nil
			}
		}
		return []string{cloudinit.Disabled}
	}
	// A user's own ISO may configure the network itself; where ours is to be left out,
	// it does.
	s := cloudinit.Source{InstanceID: it.ID, NoNetwork: o.NoNetwork && !o.OwnISO}
	if it.CloudInitMode == mvm.CloudInitNet {
		port := 0 // not reserved yet
		if it.NocloudNetPort != nil {
			port = *it.NocloudNetPort
		}
		s.URL = "http://" + p.network.IPv4Gateway + ":" + strconv.Itoa(port) + "/"
	}
	if !o.NoNetwork && (s.URL != "" || o.OwnISO) {
		s.Network = p.cloudInitNetwork()
	}
	return s.KernelArgs()
}

// cloudInitBoot is what the initramfs does for cloud-init; nil for nothing.
func (p *vmPlan) cloudInitBoot() (*guest.CloudInit, error) {
	o := p.item.Options.CloudInit
	if p.item.CloudInitMode == mvm.CloudInitOff || o == nil {
		return nil, nil
	}
	b := &guest.CloudInit{Network: !o.NoNetwork || o.OwnISO}
	if p.item.CloudInitMode == mvm.CloudInitInject {
		docs, err := cloudinit.ReadDocuments(p.c.cloudInitDocs(p.item.ID))
		if err != nil {
			return nil, err
		}
		b.Seed = docs
	}
	return b, nil
}

// cloudInitDisk is the disk with documents, in mode iso. It is the last one, so that
// no other disk is called differently for its sake.
func (p *vmPlan) cloudInitDisk() []vmm.Disk {
	if !hasISO(p.item) {
		return nil
	}
	return []vmm.Disk{{ID: cloudinit.Label, Path: p.c.cloudInitISO(p.item), Format: "raw", ReadOnly: true}}
}

func hasISO(vm *mvm.VMInstanceItem) bool {
	return vm.CloudInitMode == mvm.CloudInitISO && vm.Options.CloudInit != nil
}

func (c *core) cloudInitDocs(vmID string) string {
	return filepath.Join(c.paths.vm(vmID), cloudInitDir)
}

func (c *core) cloudInitISO(vm *mvm.VMInstanceItem) string {
	return filepath.Join(c.paths.vm(vm.ID), vm.Options.CloudInit.ISO)
}

// inheritCloudInit has a VM that is restored keep the mode of the one that the
// snapshot is of, whose devices it has. When it boots, cloud-init finds another
// instance with its own name and address; user data was run before the snapshot.
func (p *vmPlan) inheritCloudInit() {
	if o := p.item.Options.CloudInit; o != nil {
		copied := *o
		copied.OwnISO = false
		p.item.Options.CloudInit = &copied
	}
}

// observeServer drops the process of a server that has gone.
func observeServer(vm *mvm.VMInstanceItem) {
	if vm.NocloudNetPID != nil && !slices.Contains(cmdline(*vm.NocloudNetPID), cloudinit.Token(vm.ID)) {
		vm.NocloudNetPID = nil
	}
}
