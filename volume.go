package mvm

// VolumeStatus says whether a volume is in use.
type VolumeStatus string

// The states of a volume.
const (
	VolumeAvailable VolumeStatus = "available"
	VolumeAttached  VolumeStatus = "attached"
)

// VolumeItem is a persistent data disk.
type VolumeItem struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	SizeBytes  int64        `json:"size_bytes"` // what a guest sees
	Format     string       `json:"format"`     // raw or qcow2
	Path       string       `json:"path"`       // relative to the cache directory
	Status     VolumeStatus `json:"status"`
	VMID       *string      `json:"vm_id"` // of several that share it, the one that has it longest
	CreatedAt  string       `json:"created_at"`
	UpdatedAt  string       `json:"updated_at"`
	IsReadOnly bool         `json:"is_read_only"` // no VM may write to it

	// Beyond the reference.
	IsShareable bool   `json:"is_shareable"` // several VMs may have it at once, all read-only
	Writeback   bool   `json:"writeback"`    // writes may stay in the host's cache until the guest flushes them
	FSType      string `json:"fs_type"`      // of the file system that mvm made on it; "" for none
	DiskID      string `json:"-"`            // what its disk is called in a VM; "" is made of the id
}

// VolumeAttachment is a volume on a VM.
type VolumeAttachment struct {
	VolumeID   string `json:"volume_id"`
	VMID       string `json:"vm_id"`
	Position   int    `json:"position"` // among the VM's volumes; the guest finds its disks in this order at boot
	IsReadOnly bool   `json:"is_read_only"`
	MountPoint string `json:"mount_point"` // where the guest's agent mounts it; "" for nowhere
	AttachedAt string `json:"attached_at"`

	// Pending says what a VM that could not be changed while it ran will see.
	Pending PendingChange `json:"pending"`
}

// PendingChange is what becomes of an attachment when its VM ends or starts anew.
type PendingChange string

// The pending changes.
const (
	PendingNone   PendingChange = ""
	PendingAttach PendingChange = "attach" // the running VM does not have the volume yet
	PendingDetach PendingChange = "detach" // the running VM has it until it ends
)
