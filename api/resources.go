package api

import "github.com/mvmctl/mvm"

// NetworkOperation manages bridge networks.
type NetworkOperation struct{ core *core }

// NetworkInput selects networks by name or id prefix.
type NetworkInput struct{ Identifiers []string }

// NetworkInspect is a network with what hangs on it and what the kernel has.
type NetworkInspect struct {
	Network *mvm.NetworkItem        `json:"network"`
	Leases  []*mvm.NetworkLeaseItem `json:"leases"`
	Rules   []*mvm.FirewallRule     `json:"rules"`
	VMs     []string                `json:"vms"`

	// Passages are where other programs drop what they do not accept.
	Passages []NetworkPassage `json:"passages"`
}

// NetworkPassage is a place where another program drops what it does not accept, and
// so would drop what comes from guests or goes to them.
type NetworkPassage struct {
	Program string `json:"program"` // Docker, ufw, iptables, nftables
	Place   string `json:"place"`   // the chain that has our rules, or the one that drops
	Open    bool   `json:"open"`    // what the network needs is accepted there
}

// KernelOperation manages guest kernels.
type KernelOperation struct{ core *core }

// KernelInput selects kernels: type:version, path, id prefix or type.
type KernelInput struct{ Identifiers []string }

// KernelPullInput is a kernel to get.
type KernelPullInput struct {
	KernelType string // "firecracker", "official" or "debian" ("")
	Version    string // "" is the newest; of official kernels defaults.kernel version
	Arch       string // "x86_64", "arm64"; "" is this host's. Only firecracker has others
	SetDefault bool
	Force      bool // get it again

	// Of firecracker and official kernels.
	SkipChecksum bool
	NoCache      bool   // ask for listings anew
	Checksum     string // what the file has to hash to, for a kernel without published checksum (firecracker)

	// Of official kernels, which are built.
	Jobs         int // 0 takes defaults.kernel build_jobs
	KeepBuildDir bool
	CleanBuild   bool
	KernelConfig string   // path of a file with options of your own
	Features     []string // see kernel features: "kvm", "nftables", …
	Base         string   // "firecracker" (""), "minimal" or a file: what the configuration begins with
	Source       string   // "kernel.org" ("") or "package": the distribution's linux-source
}

// KernelInspect is a kernel with what its file says.
type KernelInspect struct {
	Kernel   *mvm.KernelItem `json:"kernel"`
	File     *KernelFile     `json:"file"`     // nil where it is missing
	Features []string        `json:"features"` // which of those that pull knows it has; null when it does not say
	VMs      []string        `json:"vms"`      // that boot it
}

// KernelFile is what a kernel's file says.
type KernelFile struct {
	Format   string `json:"format"` // "elf", "bzimage", "image"
	Bytes    int64  `json:"bytes"`
	Says     string `json:"says"`      // the version in the file, "" when it says none
	PVH      bool   `json:"pvh"`       // QEMU can boot it as an ELF file
	PVMGuest bool   `json:"pvm_guest"` // boots under a KVM without hardware virtualisation
	Config   bool   `json:"config"`    // it holds its configuration
}

// KernelImportInput is a kernel file to take over.
type KernelImportInput struct {
	Name       string
	SourcePath string
	Version    string // "" takes what the file says
	SetDefault bool
	PVMGuest   bool // it boots where KVM is paravirtual; a kernel with its configuration in it says so itself
}

// ImageOperation manages root disk images.
type ImageOperation struct{ core *core }

// ImageInput selects images: type:version, type, name or id prefix.
type ImageInput struct{ Identifiers []string }

// ImageBuildInput is an image to build from the host's package mirror.
type ImageBuildInput struct {
	Ref        string // "tiny", "debian", "debian:12"
	Force      bool   // build even if it is there
	SetDefault bool

	// Packages are installed besides, in an image of a distribution. One that is there
	// already may lack them, and is only replaced by Force.
	Packages []string
}

// ImagePullInput is an image to download, or to build where it cannot be downloaded.
type ImagePullInput struct {
	Type       string
	Version    string
	Force      bool
	SetDefault bool
	NoCache    bool

	// Of container images, whose Type is all of their name: "oci://alpine:3.20",
	// "docker-archive:PATH", "oci-layout:PATH".
	Arch     string // "amd64", "arm64" or as uname -m says it; "" is the host's
	Insecure bool   // plain HTTP to a registry that is not this host

	SkipChecksum      bool     // take it unchecked; inspect says so
	SkipOptimization  bool     // keep size and content as they are
	DisabledDetectors []string // type, label, size, filesystem
}

// KeyOperation manages SSH keys.
type KeyOperation struct{ core *core }

// KeyInput selects keys by name, fingerprint prefix or path of the .pub file.
type KeyInput struct{ Identifiers []string }

// KeyCreateInput is a key pair to make.
type KeyCreateInput struct {
	Name       string
	Algorithm  string // ed25519 (default), rsa, ecdsa
	Bits       int    // rsa only; default 4096
	Comment    string
	SetDefault bool
	Overwrite  bool
	OutputDir  string // "" keeps it in the configuration directory
}

// BinaryOperation manages VMM binaries.
type BinaryOperation struct{ core *core }

// HostOperation looks at the host and sets it up.
type HostOperation struct{ core *core }

// HostStatus is the state of the host against what mvm needs.
type HostStatus struct {
	KVMAccessible   bool          `json:"kvm_accessible"`
	KVMReason       string        `json:"kvm_reason"` // why not, "" when it is
	KVMHint         string        `json:"kvm_hint"`
	IPForward       string        `json:"ip_forward"`
	MissingBinaries []string      `json:"missing_binaries"`
	State           string        `json:"state"` // "ready", "degraded" or "not ready"
	Hypervisor      string        `json:"hypervisor"`
	Drivers         []DriverState `json:"drivers"`
	CacheDir        string        `json:"cache_dir"`
	Problems        []HostProblem `json:"problems"`
	Settings        []HostSetting `json:"settings"` // what 'host init' sets, as it is
	Access          string        `json:"access"`   // what this user may do: "root", "member" or "none"
}

// HostSetting is one thing that init sets, against what it has to be.
type HostSetting struct {
	What string `json:"what"`
	Now  string `json:"now"` // "" when it is not there, "?" when this user may not see it
	Want string `json:"want"`
	OK   bool   `json:"ok"`
}

// DriverState is what one hypervisor can do here.
type DriverState struct {
	Name     string   `json:"name"`
	Usable   bool     `json:"usable"`
	Path     string   `json:"path"`
	Version  string   `json:"version"`
	Accel    string   `json:"accel"`
	Problems []string `json:"problems"`
}

// HostProblem is something wrong with the host, and its remedy.
type HostProblem struct {
	What string `json:"what"`
	Hint string `json:"hint"`
}

// InitOperation sets a machine up for mvm.
type InitOperation struct{ core *core }

// InitInput says which parts of init to leave out, and what to get.
type InitInput struct {
	SkipHost        bool   // leave the host's settings, group and helper alone
	SkipNetwork     bool   // make no default network
	DownloadVersion string // of Firecracker, got also where KVM does not work; "" is the setting's, where KVM works and none is there
	Kernel          string // kernel to get if there is none, "debian"; "" gets none
	Image           string // image to get if there is none, "debian" or "tiny"; "" gets none
}

// InitResult lists what init found and did.
type InitResult struct {
	Steps      []InitStep   `json:"steps"`
	Changes    []HostChange `json:"changes"` // of the host
	Hypervisor string       `json:"hypervisor"`
	Next       []string     `json:"next"` // commands to go on with
}

// InitStep is one thing that init took care of.
type InitStep struct {
	Name   string `json:"name"`
	Done   bool   `json:"done"`   // false: it was so already
	Detail string `json:"detail"` // one line
}

// SSHOperation opens SSH sessions into VMs.
type SSHOperation struct{ core *core }

// SSHInput is a session to open.
type SSHInput struct {
	Identifier string
	User       string   // "" takes the VM's
	Key        string   // path or key name; "" takes the VM's keys
	Cmd        string   // "" opens a login shell on a pty
	Timeout    int      // seconds to connect; 0 takes settings.vm ssh_timeout_sec
	IO         StreamIO // where input comes from and output goes
}
