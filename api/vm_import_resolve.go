package api

import (
	"context"
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
)

// importing resolves a description on this host.
type importing struct {
	c       *core
	inv     *inventory
	cfg     *mvm.VMExportConfig
	res     *VMImportResult
	missing []string // what there is not
	get     []string // the commands that get it
}

func (r *importing) lacks(what, command string) {
	r.missing, r.get = append(r.missing, what), append(r.get, command)
}

func (r *importing) warn(text string) {
	r.res.Warnings = append(r.res.Warnings, text)
	r.c.notice(text)
}

// resolve turns the description into the input of Create.
func (r *importing) resolve(ctx context.Context) (VMCreateInput, error) {
	var in VMCreateInput
	if c := r.cfg.Compute; c != nil {
		in.VCPUCount, in.MemSizeMiB = c.VCPUs, c.Mem
	}
	r.image(&in)
	r.kernel(&in)
	if err := r.binary(ctx, &in); err != nil {
		return in, err
	}
	if err := r.network(ctx, &in); err != nil {
		return in, err
	}
	if b := r.cfg.Boot; b != nil {
		in.BootArgs, in.EnableConsole = b.Args, b.EnableConsole
	}
	if f := r.cfg.Firecracker; f != nil {
		in.PCIEnabled, in.NestedVirt, in.LSMFlags = f.PCIEnabled, f.NestedVirt, f.LSMFlags
		if f.CPUConfig != "" && f.CPUConfig != "null" {
			in.CPUConfig = json.RawMessage(f.CPUConfig)
			if !json.Valid(in.CPUConfig) {
				return in, mvm.Errorf(mvm.ErrInvalid, "firecracker.cpu_config is not JSON").WithHint("see Firecracker's docs/cpu_templates")
			}
		}
	}
	r.login(&in)
	if len(r.missing) > 0 {
		return in, mvm.Errorf(mvm.ErrNotFound, "this host lacks %s", strings.Join(r.missing, ", ")).
			WithHint("get it with '%s'", strings.Join(r.get, " && "))
	}
	return in, nil
}

func (r *importing) image(in *VMCreateInput) {
	i := r.cfg.Image
	if i == nil {
		return
	}
	in.DiskSize = i.DiskSize
	if i.Type == "" {
		return
	}
	for _, x := range r.inv.images {
		if (i.Type == x.Type+"-"+x.Version || i.Type == x.Type+":"+x.Version || i.Type == x.Type) && (i.Arch == "" || i.Arch == x.Arch) {
			in.Image = x.ID
			return
		}
	}
	ref := i.Type
	if at := strings.LastIndexByte(ref, '-'); at > 0 && !strings.Contains(ref, ":") {
		ref = ref[:at] + ":" + ref[at+1:]
	}
	r.lacks("image "+mvm.Quote(ref), "mvm image pull "+ref)
}

// kernel takes the version described, or else the default one: a guest does not
// depend on the last digit of its kernel's version.
func (r *importing) kernel(in *VMCreateInput) {
	k := r.cfg.Kernel
	if k == nil || k.Version == "" {
		return
	}
	for _, x := range r.inv.kernels {
		if x.Version == k.Version && (k.Arch == "" || k.Arch == x.Arch) {
			in.KernelID = x.ID
			return
		}
	}
	if len(r.inv.kernels) == 0 {
		r.lacks("a kernel", "mvm kernel pull debian")
		return
	}
	r.warn("kernel " + k.Version + " is not here: the default kernel is used")
}

func (r *importing) binary(ctx context.Context, in *VMCreateInput) error {
	b := r.cfg.Binary
	if b == nil || b.Name != "firecracker" || b.Version == "" {
		return nil
	}
	all, err := r.c.st.ListBinaries(ctx)
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(b.Version, "v")
	for _, x := range all {
		if x.Name == b.Name && strings.TrimPrefix(x.Version, "v") == version {
			if r.c.firecracker(r.c.paths.abs(x.Path)).Probe(ctx).Usable {
				in.BinaryID = x.Name + ":" + x.Version
			}
			return nil
		}
	}
	r.warn("firecracker " + version + " is not here: what this host has is used; get it with 'mvm binary pull firecracker --version " + version + "'")
	return nil
}

func (r *importing) network(ctx context.Context, in *VMCreateInput) error {
	n := r.cfg.Network
	if n == nil {
		return nil
	}
	in.Egress = n.Egress
	var found *mvm.NetworkItem
	for _, x := range r.inv.networks {
		if x.Name == n.Name {
			found = x
		}
	}
	switch {
	case n.Name == "":
	case found == nil && len(r.inv.networks) == 0 && n.Name == r.inv.set.str("defaults.network", "name"): // made by the first VM
	case found == nil:
		command := "mvm network create " + n.Name
		if n.Subnet != "" {
			command += " --subnet " + n.Subnet
		}
		if n.NATEnabled != nil && !*n.NATEnabled {
			command += " --no-nat"
		}
		r.lacks("network "+mvm.Quote(n.Name), command)
		return nil
	default:
		in.NetworkName = n.Name
		if n.Subnet != "" && found.Subnet != n.Subnet {
			r.warn("network " + n.Name + " is " + found.Subnet + " here, not " + n.Subnet + ": the VM gets a free address")
			return nil
		}
	}
	return r.addresses(ctx, in, found)
}

// addresses takes those of the description where they are free.
func (r *importing) addresses(ctx context.Context, in *VMCreateInput, n *mvm.NetworkItem) error {
	d := r.cfg.Network
	var leases []*mvm.NetworkLeaseItem
	if n != nil {
		var err error
		if leases, err = r.c.st.ListLeases(ctx, n.ID); err != nil {
			return err
		}
	}
	if ip, err := netip.ParseAddr(d.IP); err == nil && n != nil {
		if _, err := chooseIP(n, leases, ip); err == nil {
			in.RequestedGuestIP = d.IP
		} else {
			r.warn("the address " + d.IP + " cannot be had: the VM gets a free one")
		}
	} else if d.IP != "" && n == nil {
		in.RequestedGuestIP = d.IP
	}
	if d.MAC == "" {
		return nil
	}
	for _, vm := range r.inv.vms {
		if strings.EqualFold(vm.MAC, d.MAC) {
			r.warn("the MAC address " + d.MAC + " is that of VM " + mvm.Quote(vm.Name) + ": the VM gets another")
			return nil
		}
	}
	in.RequestedMAC = d.MAC
	return nil
}

func (r *importing) login(in *VMCreateInput) {
	l := r.cfg.CloudInit
	if l == nil {
		return
	}
	in.CloudInitMode, in.User = l.Mode, l.User
	r.cloudInit(in)
	if l.SSHKey == "" {
		return
	}
	if _, err := pickKey(l.SSHKey, "", r.inv.keys); err == nil {
		in.SSHKeys = []string{l.SSHKey}
		return
	}
	if len(r.inv.keys) == 0 { // the first VM makes one
		r.warn("SSH key " + l.SSHKey + " is not here: the default one is used")
		return
	}
	r.lacks("SSH key "+mvm.Quote(l.SSHKey), "mvm key create "+l.SSHKey)
}

// cloudInit takes the choices of the description's mode, with the port where it is
// free. User data is no part of a description.
func (r *importing) cloudInit(in *VMCreateInput) {
	l := r.cfg.CloudInit
	if l.Mode == mvm.CloudInitISO && l.KeepISO != nil {
		in.KeepCloudInitISO = *l.KeepISO
	}
	if l.Mode != mvm.CloudInitNet || l.NocloudNetPort == nil || *l.NocloudNetPort == 0 {
		return
	}
	port := *l.NocloudNetPort
	for _, vm := range r.inv.vms {
		if vm.NocloudNetPort != nil && *vm.NocloudNetPort == port {
			r.warn("the NoCloud port " + strconv.Itoa(port) + " is that of VM " + mvm.Quote(vm.Name) + ": the VM gets another")
			return
		}
	}
	in.NocloudNetPort = &port
}
