package mvm

import "encoding/json"

// VMInstanceItem is a VM as it is stored and listed. Times are ISO 8601 in UTC.
type VMInstanceItem struct {
	ID               string          `json:"id"`
	Name             string          `json:"name"` // also the hostname in the guest
	Status           VMStatus        `json:"status"`
	PID              int             `json:"pid"` // of the VMM; 0 when there is none
	IPv4             string          `json:"ipv4"`
	MAC              string          `json:"mac"`
	NetworkID        string          `json:"network_id"`
	TapDevice        string          `json:"tap_device"`
	ImageID          string          `json:"image_id"`
	KernelID         string          `json:"kernel_id"`
	BinaryID         string          `json:"binary_id"`
	APISocketPath    string          `json:"api_socket_path"`
	ConfigPath       string          `json:"config_path"`
	CloudInitMode    CloudInitMode   `json:"cloud_init_mode"`
	VCPUCount        int             `json:"vcpu_count"`
	MemSizeMiB       int             `json:"mem_size_mib"`
	DiskSizeMiB      int             `json:"disk_size_mib"`
	RootfsPath       string          `json:"rootfs_path"`
	RootfsSuffix     string          `json:"rootfs_suffix"` // ".ext4", ".qcow2", …
	PCIEnabled       bool            `json:"pci_enabled"`
	NestedVirt       bool            `json:"nested_virt"`
	EnableLogging    bool            `json:"enable_logging"`
	EnableMetrics    bool            `json:"enable_metrics"`
	EnableConsole    bool            `json:"enable_console"`
	CreatedAt        string          `json:"created_at"`
	UpdatedAt        string          `json:"updated_at"`
	ExitCode         *int            `json:"exit_code"`
	LogPath          *string         `json:"log_path"`
	SerialOutputPath *string         `json:"serial_output_path"`
	NocloudNetPort   *int            `json:"nocloud_net_port"`
	NocloudNetPID    *int            `json:"nocloud_net_pid"`
	RelayPID         *int            `json:"relay_pid"` // the supervisor, which relays the console
	RelaySocketPath  *string         `json:"relay_socket_path"`
	ProcessStartTime *int64          `json:"process_start_time"` // of the VMM, ms since the epoch
	LSMFlags         *string         `json:"lsm_flags"`
	BootArgs         *string         `json:"boot_args"`
	SSHKeys          []string        `json:"ssh_keys"`
	SSHUser          *string         `json:"ssh_user"`
	VolumeIDs        []string        `json:"volume_ids"`
	CPUConfig        json.RawMessage `json:"cpu_config"` // Firecracker CPU template; null when none

	// Beyond the reference.
	Hypervisor   string          `json:"hypervisor"` // the driver: "firecracker" or "qemu"
	Accel        string          `json:"accel"`      // "kvm" or "tcg"
	DNSServer    string          `json:"dns_server"`
	StatusReason string          `json:"status_reason,omitempty"` // why crashed or error
	Handle       json.RawMessage `json:"-"`                       // the driver's handle to re-attach by
	HasAgent     bool            `json:"has_agent"`               // the guest has a channel to the host
	Options      VMOptions       `json:"options"`

	// Resolved on request.
	Kernel  *KernelItem   `json:"kernel,omitempty"`
	Image   *ImageItem    `json:"image,omitempty"`
	Binary  *BinaryItem   `json:"binary,omitempty"`
	Network *NetworkItem  `json:"network,omitempty"`
	Volumes []*VolumeItem `json:"volumes,omitempty"`
}

// CloudInitMode says how a guest gets its cloud-init data.
type CloudInitMode string

// The cloud-init modes; off is the default.
const (
	CloudInitInject CloudInitMode = "inject" // a NoCloud seed written into the guest's root
	CloudInitISO    CloudInitMode = "iso"    // a NoCloud ISO as a second disk
	CloudInitNet    CloudInitMode = "net"    // a NoCloud HTTP server on the gateway
	CloudInitOff    CloudInitMode = "off"    // none
)
