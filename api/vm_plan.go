package api

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// idLen is the length of our ids: 64 bits in hex, short enough for paths of
// sockets, long enough never to meet by chance.
const idLen = 16

// newID makes the id of a new object, which tells whose it is.
func newID() string {
	b := make([]byte, idLen/2)
	_, _ = rand.Read(b) // never fails, crypto/rand says
	return network.NewID(os.Geteuid(), binary.BigEndian.Uint64(b))
}

func now() string { return stamp(time.Now()) }

// stamp is a time as it is stored.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// vmPlan is everything about a VM that is to be started, chosen before the
// first side effect. One builder makes it for every path that starts a VM.
type vmPlan struct {
	c         *core
	set       settings
	item      *mvm.VMInstanceItem
	image     *mvm.ImageItem
	kernel    *mvm.KernelItem
	network   *mvm.NetworkItem
	volumes   []vmVolume // in the order of the VM's VolumeIDs
	keyLines  []string
	driver    vmm.Driver
	probe     vmm.Probe
	jail      *vmm.Jail
	restore   *vmm.Restore // nil boots
	noAgent   bool
	deblob    bool
	initrd    string // the shared part
	wantIP    netip.Addr
	identity  vmIdentity
	handle    vmm.Handle
	startedAt time.Time
	cloudInit cloudInitPlan
}

// planCreate resolves what a user asked for into a plan, or says what is wrong
// with it. It has no side effect but on an empty machine, which gets its default
// network and key.
func (c *core) planCreate(ctx context.Context, st *store.Store, inv *inventory, in VMCreateInput) (*vmPlan, error) {
	set := inv.set
	p := &vmPlan{c: c, set: set, noAgent: in.NoAgent, deblob: !in.SkipDeblob}
	item := &mvm.VMInstanceItem{
		ID: firstOf(in.id, newID()), Name: in.Name, Status: mvm.StatusStarting, CreatedAt: now(), UpdatedAt: now(),
		VCPUCount: or(in.VCPUCount, set.num("defaults.vm", "vcpu_count")), MemSizeMiB: or(in.MemSizeMiB, set.num("defaults.vm", "mem_size_mib")),
		CloudInitMode: mvm.CloudInitOff,
		PCIEnabled:    or(in.PCIEnabled, set.flag("defaults.vm", "pci_enabled")), NestedVirt: or(in.NestedVirt, set.flag("defaults.vm", "nested_virt")),
		EnableLogging: or(in.EnableLogging, set.flag("defaults.vm", "enable_logging")), EnableMetrics: or(in.EnableMetrics, set.flag("defaults.vm", "enable_metrics")),
		EnableConsole: or(in.EnableConsole, set.flag("defaults.vm", "enable_console")),
		CPUConfig:     in.CPUConfig, SSHKeys: []string{},
	}
	p.item = item
	if err := p.chooseOptions(in); err != nil {
		return nil, err
	}
	if in.RestartPolicy != mvm.RestartNo {
		item.Options.Restart = in.RestartPolicy
	}
	lsm, args := firstOf(in.LSMFlags, set.str("defaults.vm", "lsm_flags")), firstOf(in.BootArgs, set.str("defaults.vm", "boot_args"))
	item.LSMFlags, item.BootArgs = optional(lsm), optional(args)
	item.SSHUser = optional(firstOf(in.User, set.str("defaults.vm", "ssh_user")))
	for _, err := range []error{ // again: these may come from settings
		mvm.ValidateVCPUs(item.VCPUCount), mvm.ValidateMem(item.MemSizeMiB, host.MemTotalMiB()),
		mvm.ValidateBootArgs(lsm), mvm.ValidateBootArgs(args), validateUser(*item.SSHUser),
	} {
		if err != nil {
			return nil, err
		}
	}
	for _, resolve := range []func() error{
		func() error { return p.resolveAssets(inv, in) },
		func() error { return p.resolveContainer(in) },
		func() error { return p.resolveDisk(in.DiskSize) },
		func() error { return p.resolveVolumes(inv, in) },
		func() (err error) { return p.resolveDriver(ctx, st, in) },
		p.volumesFit,
		func() error { return p.resolveCloudInit(inv, in) },
		func() error { return c.requireRoot("creating a VM") },
		func() error { return c.firstUse(ctx, st, inv, in.NetworkName) },
		func() error { return p.resolveKeys(inv, in.SSHKeys) },
		func() error { return p.resolveNetwork(inv, in) },
		func() error { return p.resolvePublish(ctx, in.Publish) },
	} {
		if err := resolve(); err != nil {
			return nil, err
		}
	}
	return p, p.finish(ctx)
}

// finish fills in what follows from the choices, and checks the whole by
// rendering it.
func (p *vmPlan) finish(ctx context.Context) error {
	it, dir := p.item, p.c.paths.vm(p.item.ID)
	files := vmFiles(p.set, p.driver.Name())
	it.Hypervisor, it.Accel, it.HasAgent = p.driver.Name(), p.probe.Accel, !p.noAgent
	it.TapDevice = network.TapName(it.ID)
	it.NetworkID, it.ImageID, it.KernelID = p.network.ID, p.image.ID, p.kernel.ID
	it.RootfsSuffix = ".raw"
	if p.probe.Capabilities.Qcow2 {
		it.RootfsSuffix = ".qcow2"
	}
	it.RootfsPath = filepath.Join(dir, "rootfs"+it.RootfsSuffix)
	it.APISocketPath, it.ConfigPath = filepath.Join(dir, files.API), filepath.Join(dir, files.Config)
	it.LogPath, it.SerialOutputPath = optional(filepath.Join(dir, files.Log)), optional(filepath.Join(dir, files.Console))
	it.RelaySocketPath = optional(filepath.Join(dir, files.ConsoleSocket))
	if err := p.chooseJail(ctx); err != nil {
		return err
	}
	if err := p.c.checkVMDNS(ctx, p.network, it); err != nil {
		return err
	}
	_, err := p.driver.Render(p.launch())
	return err
}

// firstUse makes what an empty machine lacks and a VM needs: a key, and the default
// network where none was named.
func (c *core) firstUse(ctx context.Context, st *store.Store, inv *inventory, wanted string) error {
	if len(inv.keys) == 0 {
		k, _, err := c.defaultKey(ctx, st)
		if err != nil {
			return err
		}
		inv.keys = append(inv.keys, k)
	}
	if wanted == "" || len(inv.networks) == 0 {
		n, _, err := c.defaultNetwork(ctx, st)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(inv.networks, func(x *mvm.NetworkItem) bool { return x.ID == n.ID }) {
			inv.networks = append(inv.networks, n)
		}
	}
	return nil
}

func (p *vmPlan) launch() vmm.Launch {
	it := p.item
	disks := []vmm.Disk{{ID: "rootfs", Path: it.RootfsPath, Format: diskFormat(it.RootfsSuffix)}}
	for _, v := range p.volumes {
		disks = append(disks, v.disk(p.c.paths))
	}
	disks = append(disks, p.cloudInitDisk()...)
	l := vmm.Launch{
		ID: it.ID, Name: it.Name, Dir: p.c.paths.vm(it.ID), Binary: p.probe.Path, DiskServer: p.probe.DiskServer, Jail: p.jail, Restore: p.restore, Accel: p.probe.Accel,
		Kernel: p.c.paths.abs(p.kernel.Path), Initrd: filepath.Join(p.c.paths.vm(it.ID), seedName), Cmdline: p.cmdline(),
		VCPUs: it.VCPUCount, MemMiB: it.MemSizeMiB,
		Disks:       disks,
		NICs:        []vmm.NIC{{ID: "eth0", Tap: it.TapDevice, MAC: it.MAC}},
		PCI:         it.PCIEnabled,
		Nested:      it.NestedVirt,
		CPUTemplate: it.CPUConfig,
		Agent:       !p.noAgent,
		Files:       vmFiles(p.set, p.driver.Name()),
		Logging:     it.EnableLogging,
		LogLevel:    p.set.str("defaults.firecracker", "log_level"),
		Metrics:     it.EnableMetrics,
	}
	p.applyOptions(&l)
	return l
}

// cmdline is the part of the kernel's command line that does not depend on the
// VMM. net.ifnames=0 keeps the interface's name, which is up when udev starts.
func (p *vmPlan) cmdline() string {
	args := append([]string{"net.ifnames=0", "quiet"}, p.cloudInitArgs()...)
	if p.item.LSMFlags != nil {
		args = append(args, "lsm="+*p.item.LSMFlags)
	}
	if p.item.BootArgs != nil {
		args = append(args, *p.item.BootArgs)
	}
	return strings.Join(args, " ")
}

// bootConfig is what the guest is told; addresses and identity are known by now.
func (p *vmPlan) bootConfig() (guest.BootConfig, error) {
	it := p.item
	subnet, err := netip.ParsePrefix(p.network.Subnet)
	if err != nil {
		return guest.BootConfig{}, mvm.Errorf(mvm.ErrBroken, "stored subnet %s: %w", mvm.Quote(p.network.Subnet), err)
	}
	entropy := make([]byte, 64)
	_, _ = rand.Read(entropy)
	powerOff := "acpi"
	if it.Hypervisor == "firecracker" {
		powerOff = "reboot" // Firecracker ends when the guest resets; it has no power button
	}
	forCloudInit, err := p.cloudInitBoot()
	if err != nil {
		return guest.BootConfig{}, err
	}
	cfg := guest.BootConfig{
		Version: 1, InstanceID: it.ID, Hostname: it.Name, PowerOff: powerOff, MachineID: it.ID + it.ID, Entropy: entropy, Deblob: p.deblob,
		Root: guest.RootConfig{Device: "/dev/vda", FSType: p.image.FSType, Flags: rootFlags(p.image), Grow: true},
		Network: &guest.NetConfig{MAC: it.MAC, Address: it.IPv4 + "/" + strconv.Itoa(subnet.Bits()), Gateway: p.network.IPv4Gateway,
			DNS: p.dnsServers()},
		SSH: guest.SSHConfig{User: *it.SSHUser, AuthorizedKeys: p.keyLines, HostKey: p.identity.HostKey},
	}
	cfg.Volumes, cfg.CloudInit = p.bootVolumes(), forCloudInit
	cfg.Root.Init, cfg.Container = p.bootContainer()
	if !p.noAgent {
		cfg.Agent = &guest.AgentParams{Transport: "virtio-serial", SerialName: "mvm.agent", Port: p.agentPort(), HostKey: p.identity.AgentKey,
			AuthorizedKey: p.identity.ClientPublic, PowerOff: powerOff, Version: Version}
		if p.probe.Capabilities.Vsock {
			cfg.Agent.Transport = "vsock"
		}
	}
	return cfg, nil
}

// rootFlags are the options that the root is mounted with.
func rootFlags(i *mvm.ImageItem) string {
	if i.FSSubvolume == nil {
		return ""
	}
	return "subvol=" + *i.FSSubvolume
}

func (p *vmPlan) agentPort() uint32 { return p.c.agentPort(p.item) }

// reserve claims the name and an address for the VM, in one transaction.
func (p *vmPlan) reserve(ctx context.Context, tx *store.Tx) error {
	vms, err := tx.CountVMs(ctx)
	if err != nil {
		return err
	}
	if limit := p.set.num("settings.vm", "max_vms"); vms >= limit {
		return mvm.Errorf(mvm.ErrUnavailable, "there are %d VMs, and settings.vm max_vms allows no more", vms).WithHint("remove some with 'mvm vm rm', or raise max_vms")
	}
	if n, err := tx.GetNetwork(ctx, p.network.ID); err != nil || !n.IsPresent {
		if err != nil {
			return err
		}
		return mvm.Errorf(mvm.ErrConflict, "network %s is being made or removed", mvm.Quote(n.Name)).WithHint("see 'mvm network ls', then try again")
	}
	leases, err := tx.ListLeases(ctx, p.network.ID)
	if err != nil {
		return err
	}
	ip, err := chooseIP(p.network, leases, p.wantIP)
	if err != nil {
		return err
	}
	p.item.IPv4 = ip.String()
	if err := p.reserveJail(ctx, tx); err != nil {
		return err
	}
	if err := p.reservePort(ctx, tx); err != nil {
		return err
	}
	if err := tx.InsertVM(ctx, p.item); err != nil {
		return err
	}
	if err := tx.AppendEvent(ctx, event(p.item, store.EventState, "", "create has begun")); err != nil {
		return err
	}
	if err := tx.InsertLease(ctx, &mvm.NetworkLeaseItem{NetworkID: p.network.ID, IPv4: p.item.IPv4, VMID: &p.item.ID, LeasedAt: now()}); err != nil {
		return err
	}
	if err := p.reservePorts(ctx, tx); err != nil {
		return err
	}
	return p.reserveVolumes(ctx, tx)
}

// chooseIP returns the address asked for, if it is free, or the lowest free one.
func chooseIP(n *mvm.NetworkItem, leases []*mvm.NetworkLeaseItem, want netip.Addr) (netip.Addr, error) {
	subnet, err1 := netip.ParsePrefix(n.Subnet)
	gateway, err2 := netip.ParseAddr(n.IPv4Gateway)
	if err1 != nil || err2 != nil {
		return netip.Addr{}, mvm.Errorf(mvm.ErrBroken, "network %s has no valid subnet", mvm.Quote(n.Name)).WithHint("remove the network and create it anew")
	}
	taken := make([]netip.Addr, 0, len(leases))
	for _, l := range leases {
		if a, err := netip.ParseAddr(l.IPv4); err == nil {
			taken = append(taken, a)
		}
	}
	if want.IsValid() {
		return want, network.CheckIP(subnet, gateway, taken, want)
	}
	return network.FreeIP(subnet, gateway, taken)
}

// createSteps are the side effects of a new VM, in order.
func (p *vmPlan) createSteps() []op.Step {
	c, id, dir := p.c, p.item.ID, p.c.paths.vm(p.item.ID)
	return slices.Concat([]op.Step{
		&dirStep{c: c, VMID: id},
		&identityStep{c: c, Path: filepath.Join(dir, identityName), plan: p},
		&diskStep{c: c, Path: p.item.RootfsPath, image: p.image, base: c.paths.abs(p.image.Path), format: diskFormat(p.item.RootfsSuffix), size: int64(p.item.DiskSizeMiB) << 20},
	}, p.cloudInitNew(), p.startSteps())
}

// startSteps are the side effects of starting a VM that has a disk.
func (p *vmPlan) startSteps() []op.Step {
	c, id := p.c, p.item.ID
	return slices.Concat([]op.Step{
		&seedStep{c: c, Path: filepath.Join(c.paths.vm(id), seedName), base: p.initrd, config: p.bootConfig},
		&netStep{c: c, spec: networkSpecFor(p.network, p.item)},
		&tapStep{c: c, VMID: id, Name: p.item.TapDevice, plan: p},
		&dnsStep{c: c, NetworkID: p.network.ID, VMID: id},
	}, p.cloudInitBefore(), []op.Step{&vmmStep{c: c, VMID: id, plan: p}}, p.cloudInitAfter())
}

func diskFormat(suffix string) string {
	if suffix == ".qcow2" {
		return "qcow2"
	}
	return "raw"
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// optional is nil for "", as the reference has None.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
