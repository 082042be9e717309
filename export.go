package mvm

// ExportSchemaVersion is the version of VMExportConfig.
const ExportSchemaVersion = "1.0"

// VMExportConfig describes a VM in words that mean the same on another host: types,
// versions and names, never ids or paths of the cache. Its JSON Schema is in
// docs/schema.
type VMExportConfig struct {
	SchemaVersion string                     `json:"schema_version"` // "1.0"
	Name          string                     `json:"name"`
	Compute       *VMExportComputeConfig     `json:"compute,omitempty"`
	Image         *VMExportImageConfig       `json:"image,omitempty"`
	Kernel        *VMExportKernelConfig      `json:"kernel,omitempty"`
	Binary        *VMExportBinaryConfig      `json:"binary,omitempty"` // nil where the VMM is QEMU
	Network       *VMExportNetworkConfig     `json:"network,omitempty"`
	Boot          *VMExportBootConfig        `json:"boot,omitempty"`
	Firecracker   *VMExportFirecrackerConfig `json:"firecracker,omitempty"`
	CloudInit     *VMExportCloudInitConfig   `json:"cloud_init,omitempty"`
}

// VMExportComputeConfig are the resources of a VM.
type VMExportComputeConfig struct {
	VCPUs *int `json:"vcpus,omitempty"`
	Mem   *int `json:"mem,omitempty"` // MiB
}

// VMExportImageConfig is the image of a VM.
type VMExportImageConfig struct {
	Type     string `json:"type,omitempty"`      // "debian-12"
	Arch     string `json:"arch,omitempty"`      // "x86_64"
	DiskSize string `json:"disk_size,omitempty"` // "2G"
}

// VMExportKernelConfig is the kernel of a VM.
type VMExportKernelConfig struct {
	Version string `json:"version,omitempty"`
	Arch    string `json:"arch,omitempty"`
	Type    string `json:"type,omitempty"` // "vmlinux" or "bzImage"
}

// VMExportBinaryConfig is the VMM of a VM.
type VMExportBinaryConfig struct {
	Name    string `json:"name"` // "firecracker"
	Version string `json:"version,omitempty"`
}

// VMExportNetworkConfig is the network of a VM, and its place in it.
type VMExportNetworkConfig struct {
	Name        string `json:"name,omitempty"`
	Subnet      string `json:"subnet,omitempty"` // CIDR
	IPv4Gateway string `json:"ipv4_gateway,omitempty"`
	NATGateways string `json:"nat_gateways,omitempty"` // comma-separated uplinks
	NATEnabled  *bool  `json:"nat_enabled,omitempty"`
	IP          string `json:"ip,omitempty"`
	MAC         string `json:"mac,omitempty"`

	Egress []string `json:"egress,omitzero"` // networks and names outside that it may reach; none: everything; empty: nothing
}

// VMExportBootConfig is how a VM boots.
type VMExportBootConfig struct {
	Args          string `json:"args,omitempty"`
	EnableConsole *bool  `json:"enable_console,omitempty"`
}

// VMExportFirecrackerConfig are features of the VMM.
type VMExportFirecrackerConfig struct {
	EnableAPISocket *bool  `json:"enable_api_socket,omitempty"`
	PCIEnabled      *bool  `json:"pci_enabled,omitempty"`
	LSMFlags        string `json:"lsm_flags,omitempty"`
	NestedVirt      *bool  `json:"nested_virt,omitempty"`
	CPUConfig       string `json:"cpu_config,omitempty"` // CPU template as JSON text
}

// VMExportCloudInitConfig is what a VM's guest is told by cloud-init, and its login.
type VMExportCloudInitConfig struct {
	Mode           CloudInitMode `json:"mode,omitempty"`
	User           string        `json:"user,omitempty"`
	SSHKey         string        `json:"ssh_key,omitempty"` // name or path
	KeepISO        *bool         `json:"keep_iso,omitempty"`
	NocloudNetPort *int          `json:"nocloud_net_port,omitempty"` // 0 or none: any free one
}
