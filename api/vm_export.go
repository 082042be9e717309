package api

import (
	"context"
	"encoding/json"
	"strconv"

	"go.yaml.in/yaml/v4"

	"github.com/mvmctl/mvm"
)

// Export describes a VM in words that mean the same on another host, or on this one
// for another VM. Disks are not part of it.
func (o *VMOperation) Export(ctx context.Context, in VMInput) (*mvm.VMExportConfig, error) {
	vm, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	c := o.core
	if err := c.resolveRelations(ctx, vm); err != nil {
		return nil, mvm.Wrap(err, "export VM", vm.Name)
	}
	yes := true
	cfg := &mvm.VMExportConfig{
		SchemaVersion: mvm.ExportSchemaVersion, Name: vm.Name,
		Compute:     &mvm.VMExportComputeConfig{VCPUs: &vm.VCPUCount, Mem: &vm.MemSizeMiB},
		Image:       &mvm.VMExportImageConfig{DiskSize: strconv.Itoa(vm.DiskSizeMiB) + "M"},
		Kernel:      &mvm.VMExportKernelConfig{},
		Network:     &mvm.VMExportNetworkConfig{IP: vm.IPv4, MAC: vm.MAC, Egress: vm.Options.Egress},
		Boot:        &mvm.VMExportBootConfig{Args: deref(vm.BootArgs), EnableConsole: &vm.EnableConsole},
		Firecracker: &mvm.VMExportFirecrackerConfig{EnableAPISocket: &yes, PCIEnabled: &vm.PCIEnabled, LSMFlags: deref(vm.LSMFlags), NestedVirt: &vm.NestedVirt, CPUConfig: string(vm.CPUConfig)},
		CloudInit:   &mvm.VMExportCloudInitConfig{Mode: vm.CloudInitMode, User: deref(vm.SSHUser), NocloudNetPort: vm.NocloudNetPort},
	}
	if o := vm.Options.CloudInit; hasISO(vm) && !o.OwnISO {
		cfg.CloudInit.KeepISO = &o.KeepISO
	}
	if len(vm.SSHKeys) > 0 {
		cfg.CloudInit.SSHKey = vm.SSHKeys[0]
	}
	if i := vm.Image; i != nil {
		cfg.Image.Type, cfg.Image.Arch = i.Type+"-"+i.Version, i.Arch
	}
	if k := vm.Kernel; k != nil {
		cfg.Kernel.Version, cfg.Kernel.Arch, cfg.Kernel.Type = k.Version, k.Arch, "vmlinux"
	}
	if n := vm.Network; n != nil {
		cfg.Network.Name, cfg.Network.Subnet, cfg.Network.IPv4Gateway, cfg.Network.NATEnabled, cfg.Network.NATGateways = n.Name, n.Subnet, n.IPv4Gateway, &n.NATEnabled, deref(n.NATGateways)
	}
	if vm.BinaryID != "" {
		if b, err := c.st.GetBinary(ctx, vm.BinaryID); err == nil {
			cfg.Binary = &mvm.VMExportBinaryConfig{Name: b.Name, Version: b.Version}
		}
	}
	return cfg, nil
}

// MarshalVMExport writes a description as YAML.
func MarshalVMExport(cfg *mvm.VMExportConfig) ([]byte, error) {
	text, err := json.Marshal(cfg) // the field names are those of JSON
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	plain(&doc)
	return yaml.Marshal(&doc)
}

// plain has a document that was read from JSON look like one that a person writes.
func plain(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	for _, c := range n.Content {
		plain(c)
	}
}
