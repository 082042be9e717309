package mvm

// SnapshotItem is a VM as it was at one moment: memory, devices and disks, kept
// until it is removed. It does not need the VM that it was taken of.
type SnapshotItem struct {
	ID            string         `json:"id"`
	Name          string         `json:"name"`
	VMID          string         `json:"vm_id"` // of the VM it was taken of, which may be gone
	VMName        string         `json:"vm_name"`
	Hypervisor    string         `json:"hypervisor"`
	VMMVersion    string         `json:"vmm_version"` // a snapshot loads in the version that made it
	Accel         string         `json:"accel"`
	CPU           string         `json:"cpu"`  // model and flags of the host's CPU, as a digest
	Path          string         `json:"path"` // directory, relative to the cache directory
	SizeBytes     int64          `json:"size_bytes"`
	VCPUCount     int            `json:"vcpu_count"`
	MemSizeMiB    int            `json:"mem_size_mib"`
	SourceVM      VMInstanceItem `json:"source_vm"` // the VM's row when it was taken
	VolumeIDs     []string       `json:"volume_ids"`
	CreatedAt     string         `json:"created_at"`
	UpdatedAt     string         `json:"updated_at"`
	QuiescedGuest bool           `json:"quiesced_guest"` // the agent had synced the file systems
}
