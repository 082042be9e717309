package mvm

// Provenance says where an image, kernel or binary came from, and how sure that is.
type Provenance struct {
	Source       string `json:"source"`       // URL, package, file or repository; "" for what older versions got
	Digest       string `json:"digest"`       // "sha256:…" of what was downloaded, "" where nothing was
	Verification string `json:"verification"` // one of the Verified constants, "" for what older versions got
	SignedBy     string `json:"signed_by"`    // fingerprint of the OpenPGP key, "" for what has none
}

// How it was checked that what was got is what its source has published.
const (
	VerifiedSignature = "signature" // a signature by a key of the source, over it or over its checksum
	VerifiedChecksum  = "checksum"  // a checksum that the source publishes or the user gave
	VerifiedPackage   = "package"   // the package client, by the distribution's signature
	VerifiedLocal     = "local"     // the user brought it, or it was made here
	VerifiedNot       = "skipped"   // not at all: --skip-checksum
)

// ImageItem is a root disk image in the cache.
type ImageItem struct {
	ID                   string            `json:"id"`
	Type                 string            `json:"type"`    // "debian", "ubuntu", "tiny", …
	Version              string            `json:"version"` // "12", "24.04", …
	Name                 string            `json:"name"`
	Arch                 string            `json:"arch"`
	Path                 string            `json:"path"` // relative to the cache directory
	FSType               string            `json:"fs_type"`
	MinimumRootfsSizeMiB int               `json:"minimum_rootfs_size_mib"`
	OriginalSize         int64             `json:"original_size"` // bytes, uncompressed
	IsDefault            bool              `json:"is_default"`
	IsPresent            bool              `json:"is_present"`
	PulledAt             string            `json:"pulled_at"`
	CreatedAt            string            `json:"created_at"`
	UpdatedAt            string            `json:"updated_at"`
	Distro               *string           `json:"distro"`
	FSUUID               *string           `json:"fs_uuid"`
	FSSubvolume          *string           `json:"fs_subvolume"` // of a btrfs, that has the root; null mounts what the file system says
	CompressedSize       *int64            `json:"compressed_size"`
	CompressionRatio     *float64          `json:"compression_ratio"`
	CompressedFormat     *string           `json:"compressed_format"`
	DeletedAt            *string           `json:"deleted_at"`
	VMs                  []*VMInstanceItem `json:"vms,omitempty"`

	// Container is how a container image wants to be run; nil for an image of a machine.
	Container *ContainerConfig `json:"container,omitempty"`

	Provenance
}

// ImageVersion is an image that can be pulled.
type ImageVersion struct {
	Type      string `json:"type"`
	Version   string `json:"version"`
	Name      string `json:"name"`
	Arch      string `json:"arch"`
	IsPresent bool   `json:"is_present"` // pulled already
}

// KernelItem is a guest kernel in the cache.
type KernelItem struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`      // full file name
	BaseName  string            `json:"base_name"` // "vmlinux-debian", …
	Version   string            `json:"version"`
	Arch      string            `json:"arch"`
	Type      string            `json:"type"` // firecracker, official, debian, imported
	Path      string            `json:"path"` // relative to the cache directory
	IsDefault bool              `json:"is_default"`
	IsPresent bool              `json:"is_present"`
	CreatedAt string            `json:"created_at"`
	UpdatedAt string            `json:"updated_at"`
	DeletedAt *string           `json:"deleted_at"`
	VMs       []*VMInstanceItem `json:"vms,omitempty"`

	// PVMGuest says that the kernel boots where KVM is paravirtual (kvm_pvm).
	PVMGuest bool `json:"pvm_guest"`

	// ModulesPath is the directory of the kernel's modules relative to the
	// cache directory, "" where everything needed is built in.
	ModulesPath string `json:"modules_path,omitempty"`

	Provenance
}

// KernelPullResult is what a kernel pull or build gave.
type KernelPullResult struct {
	Path         string      `json:"path"`
	Version      string      `json:"version"`
	Arch         string      `json:"arch"`
	KernelType   string      `json:"kernel_type"`
	Warnings     []string    `json:"warnings"`
	InfoMessages []string    `json:"info_messages"`
	Item         *KernelItem `json:"item,omitempty"`
}

// VersionInfo is something that can be pulled.
type VersionInfo struct {
	Type      string `json:"type"`    // "official", "firecracker", …
	Version   string `json:"version"` // as pull takes it
	Arch      string `json:"arch,omitempty"`
	Released  string `json:"released,omitempty"` // date, "" when unknown
	Note      string `json:"note,omitempty"`     // "longterm", "prerelease", …
	Source    string `json:"source,omitempty"`   // where it is
	Bytes     int64  `json:"bytes,omitempty"`    // what is downloaded; 0 when unknown
	IsPresent bool   `json:"is_present"`         // it is in the cache
}

// BinaryItem is a VMM binary: firecracker, jailer or a QEMU found on the host.
type BinaryItem struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Version     string            `json:"version"`
	FullVersion string            `json:"full_version"`
	CIVersion   *string           `json:"ci_version"`
	Path        string            `json:"path"`
	IsDefault   bool              `json:"is_default"`
	IsPresent   bool              `json:"is_present"`
	CreatedAt   string            `json:"created_at"`
	UpdatedAt   string            `json:"updated_at"`
	DeletedAt   *string           `json:"deleted_at"`
	VMs         []*VMInstanceItem `json:"vms,omitempty"`

	Provenance
}

// SSHKeyItem is an SSH key that can be given to VMs.
type SSHKeyItem struct {
	ID             string  `json:"id"`
	Name           string  `json:"name"`
	Fingerprint    string  `json:"fingerprint"` // "SHA256:…", as OpenSSH prints it
	Algorithm      string  `json:"algorithm"`
	Comment        string  `json:"comment"`
	PublicKeyPath  string  `json:"public_key_path"`
	IsDefault      bool    `json:"is_default"`
	IsPresent      bool    `json:"is_present"`
	CreatedAt      string  `json:"created_at"`
	UpdatedAt      string  `json:"updated_at"`
	PrivateKeyPath *string `json:"private_key_path"`
}

// NetworkItem is a bridge network.
type NetworkItem struct {
	ID            string              `json:"id"`
	Name          string              `json:"name"`
	Subnet        string              `json:"subnet"` // CIDR
	Bridge        string              `json:"bridge"`
	IPv4Gateway   string              `json:"ipv4_gateway"`
	BridgeActive  bool                `json:"bridge_active"`
	NATEnabled    bool                `json:"nat_enabled"`
	DNSEnabled    bool                `json:"dns_enabled"` // the gateway answers DNS
	IsDefault     bool                `json:"is_default"`
	IsPresent     bool                `json:"is_present"`
	CreatedAt     string              `json:"created_at"`
	UpdatedAt     string              `json:"updated_at"`
	DeletedAt     *string             `json:"deleted_at"`
	NATGateways   *string             `json:"nat_gateways"` // comma-separated uplinks; null means the default route's
	Leases        []*NetworkLeaseItem `json:"leases"`
	IPTablesRules []*FirewallRule     `json:"iptables_rules"`
	VMs           []*VMInstanceItem   `json:"vms,omitempty"`
}

// NetworkLeaseItem is an address given to a VM.
type NetworkLeaseItem struct {
	ID        *int64  `json:"id"`
	NetworkID string  `json:"network_id"`
	IPv4      string  `json:"ipv4"`
	VMID      *string `json:"vm_id"`
	LeasedAt  string  `json:"leased_at"`
	ExpiresAt *string `json:"expires_at"`
}

// FirewallRule is one rule of ours as it is meant to stand in the kernel.
type FirewallRule struct {
	ID             *int64  `json:"id"`
	TableName      string  `json:"table_name"` // filter, nat, mangle, raw, security
	ChainName      string  `json:"chain_name"`
	RuleType       string  `json:"rule_type"` // masquerade, forward_in, forward_out, nocloudnet_input
	Protocol       string  `json:"protocol"`  // tcp, udp, icmp, all
	Source         string  `json:"source"`
	Destination    string  `json:"destination"`
	InInterface    string  `json:"in_interface"`
	OutInterface   string  `json:"out_interface"`
	Target         string  `json:"target"` // ACCEPT, DROP, MASQUERADE, …
	SPort          int     `json:"sport"`
	DPort          int     `json:"dport"`
	NetworkID      string  `json:"network_id"`
	IsActive       bool    `json:"is_active"`
	NetworkName    *string `json:"network_name"`
	CommandString  *string `json:"command_string"`
	CommentTag     *string `json:"comment_tag"`
	CreatedAt      *string `json:"created_at"`
	LastVerifiedAt *string `json:"last_verified_at"`
}
