package api

import (
	"encoding/json"
	"time"

	"github.com/mvmctl/mvm"
)

// VMOperation is the life of VMs.
type VMOperation struct{ core *core }

// VMInput selects VMs: by name, IPv4 address, MAC address or id prefix.
type VMInput struct {
	Identifiers []string
	Force       bool          // stop, reboot, remove, detach a volume: do not ask the guest
	Timeout     time.Duration // stop: for the guest to shut down; 0 takes settings.vm stop_timeout_sec
	Wait        WaitFor       // start, reboot: what to wait for
	WaitLimit   time.Duration // start, reboot: for Wait; 0 takes settings.vm ready_timeout_sec, and none for WaitStopped
}

// VMCreateInput is what a new VM shall be. nil and "" mean: take the setting,
// else the built-in default.
type VMCreateInput struct {
	Name             string
	SSHKeys          []string // key names; empty takes the default keys
	Image            string   // type:version, type, name or id prefix; "" takes the default image
	KernelID         string   // a kernel selector; "" takes the default kernel
	VCPUCount        *int
	MemSizeMiB       *int
	NetworkName      string
	CloudInitMode    mvm.CloudInitMode // "" is what the other choices for cloud-init are for, else off
	User             string            // SSH user
	DiskSize         string            // "10G"; "" takes 2 GiB, or more where the image needs it
	RequestedGuestIP string
	RequestedMAC     string
	PCIEnabled       *bool
	NestedVirt       *bool
	CPUConfig        json.RawMessage
	EnableLogging    *bool
	EnableMetrics    *bool
	EnableConsole    *bool // kept for inspect: every VM has its console
	LSMFlags         string
	BootArgs         string
	FirecrackerBin   string // path of the VMM's binary
	BinaryID         string
	SkipCleanup      bool     // leave everything as it is when creation fails
	SkipDeblob       bool     // leave what the package managers of the image have cached
	Count            *int     // names NAME-1…NAME-N
	Atomic           bool     // with Count: all or none
	Volumes          []string // NAME[:ro|:rw][:/MOUNT/POINT], by name or id prefix

	CustomUserData      string // file with user data for cloud-init, merged with ours
	NocloudNetPort      *int   // with mode net; nil and 0 take a free one
	SkipCINetworkConfig bool   // cloud-init leaves the network alone
	KeepCloudInitISO    bool   // with mode iso: the ISO stays when the VM has started
	CloudInitISOPath    string // with mode iso: the user's own ISO in place of ours

	// Beyond the reference.
	Hypervisor string // auto, firecracker or qemu
	Wait       WaitFor
	WaitLimit  time.Duration // 0 takes settings.vm ready_timeout_sec, and none for WaitStopped
	NoAgent    bool
	NoJailer   bool            // run the VMM without a jail
	VsockPort  int             // where the agent listens; 0 takes defaults.vm vsock_port
	Writeback  bool            // writes to the root disk may stay in the host's cache until the guest flushes them, as in any case
	HugePages  bool            // guest memory from the host's pool of 2 MiB pages
	Balloon    *mvm.VMBalloon  // nil: no balloon device
	Metadata   json.RawMessage // one JSON object for the metadata service; nil: no service
	DiskLimit  *mvm.VMLimit    // of the root disk
	NetLimit   *mvm.VMLimit    // in each direction
	Isolate    bool            // apart from all other VMs of its network
	Egress     []string        // networks and names outside that it may reach: nil for all, empty for none; see mvm.CheckEgress
	DNSServer  string          // addresses of DNS servers that answer it; "" takes defaults.vm dns_server
	Publish    []string        // ports of the host: [ADDRESS:]PORT:GUESTPORT[/tcp|/udp]

	// Of a container image. Another one refuses them.
	Entrypoint   []string // in place of the image's; nil takes that, and its arguments
	Cmd          []string // arguments in place of the image's; nil takes those
	Env          []string // "NAME=value", over the image's
	NoEntrypoint bool     // nothing is started but the agent

	id  string // "" makes one
	run bool   // of Run: Cmd is for an image of a machine, too

	RestartPolicy mvm.RestartPolicy // "" is no
}

// VMCreateResult is what create made.
type VMCreateResult struct {
	VMs     []*mvm.VMInstanceItem `json:"vms"`
	Timings []Timing              `json:"timings"` // of the last VM made
}

// Timing is how long one part of an operation took.
type Timing struct {
	Phase string        `json:"phase"`
	Took  time.Duration `json:"took_ns"`
}

// VMInspect is everything there is to know of one VM, a part per concern.
type VMInspect struct {
	VM         *mvm.VMInstanceItem `json:"vm"`
	Networking VMNetworking        `json:"networking"`
	Filesystem VMFilesystem        `json:"filesystem"`
	Console    VMConsole           `json:"console"`
	Process    VMProcess           `json:"process"`
	Guest      *VMGuest            `json:"guest"`    // null while the guest's agent does not answer
	Problems   []VMProblem         `json:"problems"` // what it lacks
	Events     []VMEvent           `json:"events"`   // the last ones
}

// VMNetworking is how a VM is connected.
type VMNetworking struct {
	Network string `json:"network"`
	Bridge  string `json:"bridge"`
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway"`
	IPv4    string `json:"ipv4"`
	MAC     string `json:"mac"`
	Tap     string `json:"tap"`
	TapUp   bool   `json:"tap_up"`
	DNS     string `json:"dns"`

	Published []string `json:"published"` // ports of the host that lead here: [address:]port:port/protocol
	Egress    string   `json:"egress"`    // what it may reach outside: allow, deny, or a list
	Isolated  bool     `json:"isolated"`  // apart from all other VMs of the network
}

// VMFilesystem is where a VM's disk and files are.
type VMFilesystem struct {
	Directory      string `json:"directory"`
	Rootfs         string `json:"rootfs"`
	Format         string `json:"format"`
	SizeBytes      int64  `json:"size_bytes"`
	AllocatedBytes int64  `json:"allocated_bytes"`
	BaseImage      string `json:"base_image"`
	Kernel         string `json:"kernel"`
	Initrd         string `json:"initrd"`
}

// VMConsole is where a VM's serial console is.
type VMConsole struct {
	Socket string `json:"socket"`
	Log    string `json:"log"`
	VMMLog string `json:"vmm_log"`
}

// VMProcess is what runs for a VM on the host.
type VMProcess struct {
	Hypervisor    string   `json:"hypervisor"`
	Accel         string   `json:"accel"`
	PID           int      `json:"pid"`
	SupervisorPID int      `json:"supervisor_pid"`
	Jailed        bool     `json:"jailed"`
	Jail          *VMJail  `json:"jail"` // null while it is not jailed
	Argv          []string `json:"argv"`
}

// VMGuest is what the agent in a guest says.
type VMGuest struct {
	Hostname string `json:"hostname"`
	Kernel   string `json:"kernel"`
	Agent    string `json:"agent"` // its version
	UptimeS  int64  `json:"uptime_sec"`
}
