package api

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// VolumeOperation manages persistent data disks, which outlive the VMs that have
// them.
type VolumeOperation struct{ core *core }

// VolumeInput selects volumes by name or id prefix.
type VolumeInput struct{ Identifiers []string }

// VolumeCreateInput is a volume to make. nil and "" mean: take the default.
type VolumeCreateInput struct {
	Name     string
	Size     string // "10G", what a guest sees; rounded up to 4 KiB
	Format   string // raw (default) or qcow2
	ReadOnly *bool  // no VM may ever write to it; false when nil

	// Beyond the reference.
	Sparse    bool   // raw: take room on the host when it is written to, not now
	Shareable bool   // several VMs may have it at once, all read-only
	Writeback bool   // writes may stay in the host's cache until the guest flushes them
	Mkfs      string // make a file system: ext4, xfs or btrfs; "" leaves it empty
}

// VolumeInspect is all there is to know of a volume.
type VolumeInspect struct {
	Volume      *mvm.VolumeItem     `json:"volume"`
	Attachment  *VolumeAttachment   `json:"attachment"`  // null while no VM has it; of several the first
	Attachments []*VolumeAttachment `json:"attachments"` // all
	DiskInfo    VolumeDiskInfo      `json:"disk_info"`
	Timestamps  VolumeTimestamps    `json:"timestamps"`
}

// VolumeAttachment is a VM that has a volume, and how.
type VolumeAttachment struct {
	VMID       string            `json:"vm_id"`
	VMName     string            `json:"vm_name"`
	VMStatus   mvm.VMStatus      `json:"vm_status"`
	IsReadOnly bool              `json:"is_read_only"`
	MountPoint string            `json:"mount_point"`
	AttachedAt string            `json:"attached_at"`
	Pending    mvm.PendingChange `json:"pending"`
}

// VolumeDiskInfo is what qemu-img says of a volume's file, in its words; without
// qemu-img the fields up to ActualSize. Sizes are in bytes.
type VolumeDiskInfo struct {
	Filename       string         `json:"filename"`
	Format         string         `json:"format"`
	VirtualSize    int64          `json:"virtual-size"` // what a guest sees
	ActualSize     int64          `json:"actual-size"`  // what it takes on the host
	ClusterSize    int64          `json:"cluster-size,omitempty"`
	DirtyFlag      bool           `json:"dirty-flag"`
	Snapshots      []any          `json:"snapshots,omitempty"`
	FormatSpecific map[string]any `json:"format-specific,omitempty"`
}

// VolumeTimestamps say when a volume was made and changed.
type VolumeTimestamps struct {
	CreatedAt string `json:"created_at"`
	UpdatedAt string `json:"updated_at"`
}

const (
	opVolumeCreate = "volume.create"
	opVolumeRemove = "volume.remove"
	opVolumeResize = "volume.resize"
)

// Create makes a volume. A raw one takes all its room on the host at once, unless
// it is to be sparse. A failure or an interruption leaves nothing.
func (o *VolumeOperation) Create(ctx context.Context, in VolumeCreateInput) (*mvm.VolumeItem, error) {
	if err := mvm.ValidateName("volume", in.Name); err != nil {
		return nil, err
	}
	size, err := volumeSize(in.Size)
	if err != nil {
		return nil, err
	}
	c := o.core
	item := &mvm.VolumeItem{
		ID: newID(), Name: in.Name, SizeBytes: size, Format: firstOf(in.Format, disk.Raw), Status: mvm.VolumeAvailable,
		IsReadOnly: or(in.ReadOnly, false), IsShareable: in.Shareable, Writeback: in.Writeback, FSType: in.Mkfs,
	}
	file := disk.Volume{Path: c.volumePath(item), Format: item.Format, Size: size, Sparse: in.Sparse, FS: in.Mkfs, Label: in.Name}
	item.Path = c.paths.rel(file.Path)
	if err := file.Check(); err != nil {
		return nil, err
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	return item, mvm.Wrap(c.makeVolume(ctx, st, item, file), "create volume", in.Name)
}

// volumeSize reads a size and rounds it up to whole blocks.
func volumeSize(s string) (int64, error) {
	size, err := mvm.ParseSize(s)
	if err != nil {
		return 0, err
	}
	if size > disk.MaxVolume {
		return 0, disk.CheckVolumeSize(size)
	}
	size = (size + disk.VolumeGrain - 1) / disk.VolumeGrain * disk.VolumeGrain
	return size, disk.CheckVolumeSize(size)
}

func (c *core) volumePath(v *mvm.VolumeItem) string {
	return filepath.Join(c.paths.volumes(), v.ID+"."+v.Format)
}

func (c *core) makeVolume(ctx context.Context, st *store.Store, item *mvm.VolumeItem, file disk.Volume) error {
	if err := volumeNameFree(ctx, st.Queries, item.Name); err != nil {
		return err
	}
	if err := os.MkdirAll(c.paths.volumes(), 0o700); err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot make the directory for volumes: %w", err).WithHint("check the permissions of %s", c.paths.cache)
	}
	return c.journal.Run(ctx, op.Op{
		Kind: opVolumeCreate, Subject: item.Name, SubjectID: item.ID,
		Reserve: func(tx *store.Tx) error { return volumeNameFree(ctx, tx.Queries, item.Name) },
		Steps:   []op.Step{&volumeStep{c: c, ID: item.ID, Format: item.Format, file: file}},
		// The row comes last: nobody can attach what is half made.
		Commit: func(tx *store.Tx) error {
			size, err := disk.VolumeSize(file.Path, item.Format)
			if err != nil {
				return err
			}
			item.SizeBytes = size
			return tx.InsertVolume(ctx, item)
		},
	})
}

func volumeNameFree(ctx context.Context, q store.Queries, name string) error {
	all, err := q.ListVolumes(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(v *mvm.VolumeItem) bool { return v.Name == name }) {
		return mvm.Errorf(mvm.ErrExists, "a volume named %s exists already", mvm.Quote(name)).WithHint("choose another name; 'mvm volume ls' shows those in use")
	}
	return nil
}

// volumeStep makes the file of a volume, or is what removes it.
type volumeStep struct {
	c      *core
	ID     string `json:"id"`
	Format string `json:"format"`

	file disk.Volume
}

func (s *volumeStep) Kind() string { return "volume" }

func (s *volumeStep) Apply(ctx context.Context) error {
	return disk.MakeVolume(ctx, s.c.runner, s.file)
}

func (s *volumeStep) Revert(context.Context) error {
	if !validID(s.ID) || s.Format != disk.Raw && s.Format != disk.Qcow2 {
		return mvm.Errorf(mvm.ErrBroken, "%s is not a volume's file", mvm.Quote(s.ID+"."+s.Format)).WithHint("the database was changed by hand")
	}
	return disk.RemoveVolume(s.c.volumePath(&mvm.VolumeItem{ID: s.ID, Format: s.Format}))
}

// ListAll returns all volumes by name.
func (o *VolumeOperation) ListAll(ctx context.Context) ([]*mvm.VolumeItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	all, err := st.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		o.core.observeVolume(v)
	}
	return all, nil
}

// observeVolume corrects a volume's size by what its file says, should they differ.
func (c *core) observeVolume(v *mvm.VolumeItem) {
	if size, err := disk.VolumeSize(c.paths.abs(v.Path), v.Format); err == nil {
		v.SizeBytes = size
	}
}

// Get returns one volume by name or id prefix.
func (o *VolumeOperation) Get(ctx context.Context, in VolumeInput) (*mvm.VolumeItem, error) {
	sel, err := one("volume", in.Identifiers)
	if err != nil {
		return nil, err
	}
	all, err := o.ListAll(ctx)
	if err != nil {
		return nil, err
	}
	return pickVolume(sel, all)
}

// Inspect returns a volume with the VMs that have it, and what qemu-img says of
// its file. A file that takes content from another one is refused.
func (o *VolumeOperation) Inspect(ctx context.Context, in VolumeInput) (*VolumeInspect, error) {
	c := o.core
	v, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	out := &VolumeInspect{Volume: v, Attachments: []*VolumeAttachment{}, Timestamps: VolumeTimestamps{v.CreatedAt, v.UpdatedAt}}
	attached, err := c.st.ListAttachmentsOfVolume(ctx, v.ID)
	if err != nil {
		return nil, err
	}
	for _, a := range attached {
		vm, err := c.st.GetVM(ctx, a.VMID)
		if errors.Is(err, mvm.ErrNotFound) { // removed between two queries
			continue
		}
		if err != nil {
			return nil, err
		}
		c.observe(ctx, c.st, vm)
		out.Attachments = append(out.Attachments, &VolumeAttachment{
			VMID: a.VMID, VMName: vm.Name, VMStatus: vm.Status, IsReadOnly: a.IsReadOnly, MountPoint: a.MountPoint, AttachedAt: a.AttachedAt, Pending: a.Pending,
		})
	}
	slices.SortFunc(out.Attachments, func(a, b *VolumeAttachment) int { return compare(a.AttachedAt+a.VMID, b.AttachedAt+b.VMID) })
	if len(out.Attachments) > 0 {
		out.Attachment = out.Attachments[0]
	}
	info, err := disk.InspectVolume(ctx, c.runner, c.paths.abs(v.Path), v.Format)
	if err != nil {
		return nil, mvm.Wrap(err, "inspect volume", v.Name)
	}
	out.DiskInfo = VolumeDiskInfo(info)
	return out, nil
}
