package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
)

// Module is a kernel module file.
type Module struct {
	Name    string   // as the kernel has it: underscores, never dashes
	Path    string   // a .ko file, not compressed
	Depends []string // names of modules that have to be loaded before
	Soft    []string // names or algorithms that it would like loaded before (softdep pre:)
	Aliases []string // other names and device patterns: "crypto-sha256", "virtio:d00000002v*"
}

// bootModules is what every guest loads: its devices, the agent's channel, and
// overlay, since a stock image has no modules of this kernel to load it from.
var bootModules = []string{
	"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon",
	"vmw_vsock_virtio_transport", "overlay",
}

// fsModules is what mounting a file system of a type needs. Only the type in use is
// loaded: btrfs measures its checksum routines at load time, for seconds in an
// emulated guest.
var fsModules = map[string][]string{"ext4": {"ext4"}, "xfs": {"xfs"}, "btrfs": {"btrfs"}, "iso9660": {"isofs"}}

// required has to be there, as a module or built in: without these no guest
// finds its disk.
var required = []string{"virtio_blk", "virtio_pci"}

// labModules stay on disk beside the boot set: a guest that is a VM host itself
// (nested KVM, bridges, NAT) loads them.
var labModules = []string{
	"kvm", "kvm_amd", "kvm_intel", "vhost_net", "vhost_vsock", "bridge", "br_netfilter", "tun", "tap", "veth", "loop",
	"nf_tables", "nft_chain_nat", "nft_masq", "nft_nat", "nft_ct", "nft_counter", "nft_log", "nft_limit", "nft_reject",
	"nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_fib", "nft_fib_inet", "nft_redir", "nft_compat",
	"nf_conntrack", "nf_nat", "nf_conntrack_bridge", "nft_meta_bridge", "nft_reject_bridge", "xt_MASQUERADE", "xt_conntrack", "xt_comment", "xt_nat",
	"iptable_nat", "iptable_filter", "ip_tables", "dm_mod", "dm_snapshot", "sch_tbf", "sch_ingress", "act_police", "act_mirred", "cls_u32",
	"fuse", "virtiofs", "squashfs", "isofs", "vfat", "nls_ascii", "nls_cp437", "nls_iso8859_1",
}

// ReadModules reads what the modules below dir say of themselves, by name.
func ReadModules(dir string) (map[string]Module, error) {
	mods := map[string]Module{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasSuffix(path, ".ko") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m, err := ParseModule(data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if m.Name == "" {
			m.Name = ModuleName(path)
		}
		m.Path = path
		mods[m.Name] = m
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, mvm.Errorf(mvm.ErrBroken, "the kernel's modules are missing: %w", err).WithHint("pull the kernel again")
	}
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrBroken, "cannot read the kernel's modules: %w", err).WithHint("pull the kernel again")
	}
	return mods, nil
}

// ModuleName returns the name that the kernel gives the module in a file:
// "virtio_rng" for "kernel/drivers/char/hw_random/virtio-rng.ko.xz".
func ModuleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// LoadOrder returns those of the wanted modules that exist, with everything
// they depend on, each after what it depends on. A wanted module that does not
// exist is built in or not offered, and left out; a missing dependency of one
// that exists is mvm.ErrBroken, and so is a cycle.
func LoadOrder(mods map[string]Module, want []string) ([]Module, error) {
	o := orderer{mods: mods, soft: softNames(mods), state: map[string]visit{}}
	for _, name := range want {
		if _, ok := mods[name]; !ok {
			continue
		}
		if err := o.add(name, name); err != nil {
			return nil, err
		}
	}
	return o.order, nil
}

type visit int

const (
	unseen visit = iota
	open
	done
)

type orderer struct {
	mods  map[string]Module
	soft  map[string]string
	state map[string]visit
	order []Module
}

// add appends a module that another one needs, after what it needs itself.
func (o *orderer) add(name, by string) error {
	m, ok := o.mods[name]
	switch {
	case !ok:
		return mvm.Errorf(mvm.ErrBroken, "the module %s needs %s, which is missing", by, name).WithHint("pull the kernel again")
	case o.state[name] == done:
		return nil
	case o.state[name] == open:
		return mvm.Errorf(mvm.ErrBroken, "the modules %s and %s need each other", by, name).WithHint("pull the kernel again")
	}
	o.state[name] = open
	for _, d := range m.Depends {
		if err := o.add(d, name); err != nil {
			return err
		}
	}
	for _, s := range m.Soft {
		// A wish in a circle is no error, and neither is one that nothing grants.
		if d := o.soft[s]; d != "" && o.state[d] == unseen {
			if err := o.add(d, name); err != nil {
				return err
			}
		}
	}
	o.state[name] = done
	o.order = append(o.order, m)
	return nil
}

// softNames says which module grants a wish: by its name, or as the generic
// code of an algorithm. Code for certain processors is left out, because
// loading it fails on others.
func softNames(mods map[string]Module) map[string]string {
	names := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(mods)) {
		m := mods[name]
		names[name], names[strings.ReplaceAll(name, "_", "-")] = name, name
		if strings.Contains(m.Path, "/arch/") {
			continue
		}
		for _, a := range m.Aliases {
			if alg, ok := strings.CutPrefix(a, "crypto-"); ok && names[alg] == "" {
				names[alg] = name
			}
		}
	}
	return names
}

// BootModules returns the module files below modulesDir that a guest with a
// root and data disks of these types ("" for any) loads in its initramfs, in load
// order. A kernel that has all it needs built in gives none.
func BootModules(modulesDir string, fsTypes ...string) ([]string, error) {
	if modulesDir == "" {
		return nil, nil
	}
	mods, err := ReadModules(modulesDir)
	if err != nil {
		return nil, err
	}
	want := slices.Clone(bootModules)
	for _, fsType := range fsTypes {
		want = append(want, fsModules[fsType]...)
	}
	if slices.Contains(fsTypes, "") {
		want = allBootModules()
	}
	order, err := LoadOrder(mods, want)
	if err != nil {
		return nil, err
	}
	paths := make([]string, 0, len(order))
	for _, m := range order {
		paths = append(paths, m.Path)
	}
	return paths, nil
}

func allBootModules() []string {
	want := slices.Clone(bootModules)
	for _, fsType := range slices.Sorted(maps.Keys(fsModules)) {
		want = append(want, fsModules[fsType]...)
	}
	return want
}
