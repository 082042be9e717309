package api

import (
	"context"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/store"
)

// infoKey is where what was found out of the host is kept.
const infoKey = "host.info"

// HostInfo is the hardware and limits of the host, and how many VMs of the default
// size it has room for.
type HostInfo struct {
	CPU struct {
		Model     string `json:"model"`
		Cores     int    `json:"cores"`
		NUMANodes int    `json:"numa_nodes"`
	} `json:"cpu"`
	Memory struct {
		TotalMiB     int `json:"total_mib"`
		AvailableMiB int `json:"available_mib"`
	} `json:"memory"`
	Kernel string `json:"kernel"`
	Limits struct {
		PIDMax  int64 `json:"pid_max"`
		PIDUsed int64 `json:"pid_used"`
		FDMax   int64 `json:"fd_max"`
		FDUsed  int64 `json:"fd_used"`
	} `json:"limits"`
	Disk struct {
		CacheDir string `json:"cache_dir"`
		FreeMiB  int64  `json:"free_mib"`
	} `json:"disk"`
	Capacity   HostCapacity `json:"capacity"`
	DetectedAt string       `json:"detected_at"`
}

// HostCapacity is how many VMs the host has room for, those that run included.
type HostCapacity struct {
	RecommendedMaxVMs int            `json:"recommended_max_vms"`
	BoundedBy         string         `json:"bounded_by"` // the least of Bounds
	VCPUs             int            `json:"vcpus"`      // of the VM that is counted with
	MemMiB            int            `json:"mem_mib"`
	RunningVMs        int            `json:"running_vms"`
	Bounds            []HostCapBound `json:"bounds"` // the tightest first
}

// HostCapBound is how many VMs one thing allows.
type HostCapBound struct {
	What   string `json:"what"` // memory, cpu, pids, fds, disk, bridge ports, addresses, max_vms
	MaxVMs int    `json:"max_vms"`
	Detail string `json:"detail"`
}

// What a VM is counted with besides its guest's memory: estimates on the safe side, not
// measurements. A VMM and its supervisor are two programs with threads for each vCPU
// and for input and output; on the disk are an initrd (12 MiB), an overlay with what a
// first boot writes, and logs.
const (
	tasksPerVM    = 24
	filesPerVM    = 64
	extraMemMiB   = 64
	diskPerVMMiB  = 64
	reserveMemMiB = 512 // stays with the host
	vcpusPerCore  = 8   // for guests that mostly wait; a choice, as any ratio is
)

// bridgePorts is how many ports a bridge has (net/bridge/br_private.h: BR_MAX_PORTS
// is 1024, and number 0 is not given out).
const bridgePorts = 1023

// Info tells what the host is and has room for, by what was found out when it was
// asked for the last time; RefreshCapacity looks again.
func (o *HostOperation) Info(ctx context.Context) (*HostInfo, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	info := &HostInfo{}
	if known, err := st.GetHostState(ctx, infoKey, info); err == nil && known && info.Kernel == host.Release() {
		return info, nil
	}
	return o.RefreshCapacity(ctx)
}

// RefreshCapacity finds out anew what the host is and has room for.
func (o *HostOperation) RefreshCapacity(ctx context.Context) (*HostInfo, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	info := &HostInfo{Kernel: host.Release(), DetectedAt: now()}
	info.CPU.Model, info.CPU.Cores, info.CPU.NUMANodes = host.CPUModel(), host.Cores(), host.NUMANodes()
	info.Memory.TotalMiB, info.Memory.AvailableMiB = host.MemTotalMiB(), host.MemAvailableMiB()
	tasks, files := host.Tasks(), host.Files()
	info.Limits.PIDMax, info.Limits.PIDUsed, info.Limits.FDMax, info.Limits.FDUsed = tasks.Max, tasks.Used, files.Max, files.Used
	info.Disk.CacheDir, info.Disk.FreeMiB = c.paths.cache, host.DiskFreeMiB(c.paths.cache)
	if info.Capacity, err = capacity(ctx, st, info); err != nil {
		return nil, err
	}
	return info, st.SetHostState(ctx, infoKey, info)
}

// capacity counts how many more VMs of the default size there is room for, and those
// that run.
func capacity(ctx context.Context, st *store.Store, info *HostInfo) (HostCapacity, error) {
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return HostCapacity{}, err
	}
	h := HostCapacity{VCPUs: inv.set.num("defaults.vm", "vcpu_count"), MemMiB: inv.set.num("defaults.vm", "mem_size_mib")}
	vcpus := 0
	for _, vm := range inv.vms {
		if vm.Status.Active() {
			h.RunningVMs++
			vcpus += vm.VCPUCount
		}
	}
	more := func(what string, free, each int64, unit string) {
		n := h.RunningVMs + int(min(max(free, 0)/max(each, 1), math.MaxInt32))
		h.Bounds = append(h.Bounds, HostCapBound{what, n, number(free) + " " + unit + " free, " + number(each) + " each"})
	}
	more("memory", int64(info.Memory.AvailableMiB-reserveMemMiB), int64(h.MemMiB+extraMemMiB), "MiB")
	more("cpu", int64(info.CPU.Cores*vcpusPerCore-vcpus), int64(h.VCPUs), "vCPUs (8 for each core)")
	more("pids", info.Limits.PIDMax-info.Limits.PIDUsed, tasksPerVM, "processes and threads")
	more("fds", info.Limits.FDMax-info.Limits.FDUsed, filesPerVM, "open files")
	more("disk", info.Disk.FreeMiB, diskPerVMMiB, "MiB")
	networks := max(len(inv.networks), 1)
	more("bridge ports", int64(networks*bridgePorts-h.RunningVMs), 1, "ports of "+plural(networks, "bridge"))
	h.addresses(ctx, st, inv)
	if limit := inv.set.num("settings.vm", "max_vms"); limit > 0 {
		h.Bounds = append(h.Bounds, HostCapBound{"max_vms", limit, "settings.vm max_vms"})
	}
	slices.SortStableFunc(h.Bounds, func(a, b HostCapBound) int { return a.MaxVMs - b.MaxVMs })
	h.RecommendedMaxVMs, h.BoundedBy = h.Bounds[0].MaxVMs, h.Bounds[0].What
	return h, nil
}

// addresses counts the addresses for guests of all networks, or of the default one
// that there will be.
func (h *HostCapacity) addresses(ctx context.Context, st *store.Store, inv *inventory) {
	subnets := []string{inv.set.str("defaults.network", "subnet")}
	if len(inv.networks) > 0 {
		subnets = nil
	}
	for _, n := range inv.networks {
		subnets = append(subnets, n.Subnet)
	}
	total := 0
	for _, s := range subnets {
		if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() && p.Bits() <= 30 {
			total += 1<<(32-p.Bits()) - 3 // network, gateway, broadcast
		}
	}
	leases := 0
	for _, n := range inv.networks {
		if l, err := st.ListLeases(ctx, n.ID); err == nil {
			leases += len(l)
		}
	}
	h.Bounds = append(h.Bounds, HostCapBound{"addresses", total - leases + min(h.RunningVMs, leases),
		number(int64(total-leases)) + " free in " + plural(len(subnets), "subnet")})
}

func number(n int64) string {
	s := []byte{}
	digits := []byte(strconv.FormatInt(n, 10))
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 && digits[i-1] != '-' {
			s = append(s, ',')
		}
		s = append(s, d)
	}
	return string(s)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if strings.HasSuffix(noun, "s") {
		noun += "e"
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// KVMAccess tells whether this user's VMs can have KVM, and if not, why.
type KVMAccess struct {
	Accessible bool   `json:"accessible"`
	Reason     string `json:"reason"`
	Hint       string `json:"hint"`
}

// CheckKVMAccess tells whether KVM virtualises here for this user: no device, no
// permission, no hardware virtualisation and a paravirtual KVM are told apart. On the
// last it does where the default kernel is built as a PVM guest.
func (o *HostOperation) CheckKVMAccess(ctx context.Context) (*KVMAccess, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return nil, err
	}
	kvm := c.kvmFor(defaultKernel(inv.kernels))
	return &KVMAccess{Accessible: kvm.Usable, Reason: kvm.Problem.What, Hint: kvm.Problem.Hint}, nil
}

// defaultKernel is the kernel that a VM gets when none is named, nil for none.
func defaultKernel(kernels []*mvm.KernelItem) *mvm.KernelItem {
	k, err := defaultOf("kernel", kernels, func(k *mvm.KernelItem) bool { return k.IsDefault }, "")
	if err != nil {
		return nil
	}
	return k
}
