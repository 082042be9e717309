package firecracker

import "encoding/json"

// Config is Firecracker's configuration file (docs/getting-started.md and
// FullVmConfiguration in its OpenAPI description). A section that is nil is
// left out.
type Config struct {
	BootSource    BootSource         `json:"boot-source"`
	Drives        []Drive            `json:"drives"` // required, even when empty
	Machine       MachineConfig      `json:"machine-config"`
	CPU           json.RawMessage    `json:"cpu-config,omitempty"`
	NICs          []NetworkInterface `json:"network-interfaces,omitempty"`
	Vsock         *Vsock             `json:"vsock,omitempty"`
	Entropy       *Entropy           `json:"entropy,omitempty"`
	Logger        *Logger            `json:"logger,omitempty"`
	Metrics       *Metrics           `json:"metrics,omitempty"`
	Balloon       *Balloon           `json:"balloon,omitempty"`
	MMDS          *MMDSConfig        `json:"mmds-config,omitempty"`
	MemoryHotplug json.RawMessage    `json:"memory-hotplug,omitempty"`
}

// BootSource says what to boot.
type BootSource struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Args   string `json:"boot_args,omitempty"`
}

// Drive is a virtio block device. Its id has letters, digits and underscores
// only, because the API takes no other (checked_id in Firecracker's source).
type Drive struct {
	ID        string       `json:"drive_id"`
	Path      string       `json:"path_on_host,omitempty"`
	Socket    string       `json:"socket,omitempty"` // of a vhost-user server, in place of Path, ReadOnly, IOEngine and Limiter
	Root      bool         `json:"is_root_device"`
	ReadOnly  bool         `json:"is_read_only,omitempty"`
	CacheType string       `json:"cache_type,omitempty"` // "Unsafe" ignores the guest's flushes, "Writeback" obeys them
	IOEngine  string       `json:"io_engine,omitempty"`  // "Sync" or "Async" (io_uring)
	Limiter   *RateLimiter `json:"rate_limiter,omitempty"`
}

// DriveUpdate changes a drive of a running VM. With a Path the guest is told
// that the size may have changed.
type DriveUpdate struct {
	ID      string       `json:"drive_id"`
	Path    string       `json:"path_on_host,omitempty"`
	Limiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// MachineConfig is the size of the VM.
type MachineConfig struct {
	VCPUs      int    `json:"vcpu_count"`
	MemMiB     int    `json:"mem_size_mib"`
	SMT        bool   `json:"smt"`
	TrackDirty bool   `json:"track_dirty_pages"`
	HugePages  string `json:"huge_pages,omitempty"` // "None" or "2M"
}

// NetworkInterface is a virtio net device on a tap.
type NetworkInterface struct {
	ID  string       `json:"iface_id"`
	Tap string       `json:"host_dev_name"`
	MAC string       `json:"guest_mac,omitempty"`
	MTU int          `json:"mtu,omitempty"`
	RX  *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TX  *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// NetworkUpdate changes the rate limits of an interface of a running VM. A nil
// limiter is left as it is.
type NetworkUpdate struct {
	ID string       `json:"iface_id"`
	RX *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TX *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// RateLimiter bounds bytes and operations. A nil bucket does not bound.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"` // tokens are bytes
	Ops       *TokenBucket `json:"ops,omitempty"`       // tokens are operations
}

// TokenBucket holds Size tokens and fills up in RefillMillis milliseconds.
type TokenBucket struct {
	Size         int64 `json:"size"`
	OneTimeBurst int64 `json:"one_time_burst,omitempty"`
	RefillMillis int64 `json:"refill_time"`
}

// Vsock is the virtio vsock device behind a unix socket (docs/vsock.md).
type Vsock struct {
	CID  uint32 `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// Entropy is the virtio rng device.
type Entropy struct {
	Limiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// Logger sets up Firecracker's log.
type Logger struct {
	Path      string `json:"log_path,omitempty"`
	Level     string `json:"level,omitempty"`
	ShowLevel bool   `json:"show_level,omitempty"`
}

// Serial sets up the serial console. The configuration file has no section for it.
type Serial struct {
	Path    string       `json:"serial_out_path,omitempty"` // file or FIFO for what the guest prints
	Limiter *TokenBucket `json:"rate_limiter,omitempty"`    // tokens are bytes; what is beyond them is dropped
}

// Metrics sets up where metrics are flushed to.
type Metrics struct {
	Path string `json:"metrics_path"`
}

// Balloon is the virtio balloon device.
type Balloon struct {
	AmountMiB         int  `json:"amount_mib"`
	DeflateOnOOM      bool `json:"deflate_on_oom"`
	StatsIntervalSec  int  `json:"stats_polling_interval_s,omitempty"` // 0: no statistics
	FreePageReporting bool `json:"free_page_reporting,omitempty"`
}

// BalloonStats are the statistics of the balloon. Memory is in bytes unless the
// name says otherwise.
type BalloonStats struct {
	TargetPages     int64 `json:"target_pages"`
	ActualPages     int64 `json:"actual_pages"`
	TargetMiB       int64 `json:"target_mib"`
	ActualMiB       int64 `json:"actual_mib"`
	SwapIn          int64 `json:"swap_in"`
	SwapOut         int64 `json:"swap_out"`
	MajorFaults     int64 `json:"major_faults"`
	MinorFaults     int64 `json:"minor_faults"`
	FreeMemory      int64 `json:"free_memory"`
	TotalMemory     int64 `json:"total_memory"`
	AvailableMemory int64 `json:"available_memory"`
	DiskCaches      int64 `json:"disk_caches"`
}

// MMDSConfig sets up the metadata service.
type MMDSConfig struct {
	Version string   `json:"version,omitempty"` // "V1" or "V2"
	NICs    []string `json:"network_interfaces"`
	Address string   `json:"ipv4_address,omitempty"`
}

// SnapshotCreate says where a snapshot goes.
type SnapshotCreate struct {
	State string `json:"snapshot_path"`
	Mem   string `json:"mem_file_path"`
	Type  string `json:"snapshot_type,omitempty"` // "Full" or "Diff"
}

// SnapshotLoad says what to restore in a fresh Firecracker.
type SnapshotLoad struct {
	State         string            `json:"snapshot_path"`
	Mem           MemBackend        `json:"mem_backend"`
	TrackDirty    bool              `json:"track_dirty_pages,omitempty"`
	Resume        bool              `json:"resume_vm,omitempty"`
	NICs          []NetworkOverride `json:"network_overrides,omitempty"`
	Vsock         *VsockOverride    `json:"vsock_override,omitempty"`
	ClockRealtime bool              `json:"clock_realtime,omitempty"` // advance the guest's clock by the time since the snapshot
}

// MemBackend says where guest memory comes from.
type MemBackend struct {
	Type string `json:"backend_type"` // "File" or "Uffd"
	Path string `json:"backend_path"`
}

// NetworkOverride replaces the tap that a snapshot names.
type NetworkOverride struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
}

// VsockOverride replaces the unix socket that a snapshot names.
type VsockOverride struct {
	Path string `json:"uds_path"`
}

// InstanceInfo is what Firecracker says of itself.
type InstanceInfo struct {
	App     string `json:"app_name"`
	ID      string `json:"id"`
	State   string `json:"state"` // "Not started", "Running" or "Paused"
	Version string `json:"vmm_version"`
}
