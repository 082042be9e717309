package api

import (
	"context"
	"errors"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// Remove removes volumes with their files. One that is attached is kept, unless
// force is set: the VMs then go without it from their next start on; one that runs
// keeps what it has open until it ends.
func (o *VolumeOperation) Remove(ctx context.Context, in VolumeInput, force bool) (mvm.Batch[*mvm.VolumeItem], error) {
	var batch mvm.Batch[*mvm.VolumeItem]
	if len(in.Identifiers) == 0 {
		return batch, mvm.Errorf(mvm.ErrInvalid, "no volume was named").WithHint("name one or more; see 'mvm volume ls'")
	}
	for _, sel := range in.Identifiers {
		v, err := o.Get(ctx, VolumeInput{[]string{sel}})
		if err == nil {
			err = mvm.Wrap(o.core.removeVolume(ctx, v, force), "remove volume", v.Name)
		}
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.VolumeItem]{Identifier: sel, Item: v, Err: err})
	}
	return batch, batch.Err()
}

func (c *core) removeVolume(ctx context.Context, v *mvm.VolumeItem, force bool) error {
	return c.journal.Forward(ctx, op.Op{
		Kind: opVolumeRemove, Subject: v.Name, SubjectID: v.ID,
		Reserve: func(tx *store.Tx) error {
			users, err := volumeUsers(ctx, tx, v.ID)
			if err == nil && len(users) > 0 && !force {
				return mvm.Errorf(mvm.ErrConflict, "it is attached to %s", vmNames(users)).
					WithHint("detach it with 'mvm volume detach %s %s', or use --force", users[0].Name, v.Name)
			}
			return err
		},
		Steps: []op.Step{&volumeStep{c: c, ID: v.ID, Format: v.Format}},
	})
}

// volumeUsers are the VMs that have a volume, as they are stored.
func volumeUsers(ctx context.Context, tx *store.Tx, id string) ([]*mvm.VMInstanceItem, error) {
	attached, err := tx.ListAttachmentsOfVolume(ctx, id)
	if err != nil {
		return nil, err
	}
	var users []*mvm.VMInstanceItem
	for _, a := range attached {
		vm, err := tx.GetVM(ctx, a.VMID)
		if err != nil {
			return nil, err
		}
		users = append(users, vm)
	}
	return users, nil
}

func vmNames(vms []*mvm.VMInstanceItem) string {
	names := make([]string, 0, len(vms))
	for _, vm := range vms {
		names = append(names, mvm.Quote(vm.Name))
	}
	return strings.Join(names, ", ")
}

// volumeFree refuses a volume that another operation works on: its file may be
// going, or changing its size.
func volumeFree(ctx context.Context, tx *store.Tx, id string) error {
	ops, err := tx.ListOps(ctx, id)
	if err != nil || len(ops) == 0 {
		return err
	}
	return store.Busy(ops[0])
}

// VolumeResizeInput is the size that a volume shall have.
type VolumeResizeInput struct {
	Name   string // or id prefix
	Size   string // "20G", rounded up to 4 KiB
	Shrink bool   // qcow2 may become smaller, and loses what is beyond
}

// Resize changes the size of a volume that no running VM has. Raw volumes only
// grow; qcow2 ones shrink too, if Shrink is set. What file system is on it is not
// told. What is recorded in the end is the size of the file, also after a failure
// or a crash.
func (o *VolumeOperation) Resize(ctx context.Context, in VolumeResizeInput) (*mvm.VolumeItem, error) {
	size, err := volumeSize(in.Size)
	if err != nil {
		return nil, err
	}
	v, err := o.Get(ctx, VolumeInput{[]string{in.Name}})
	if err != nil {
		return nil, err
	}
	return v, mvm.Wrap(o.core.resizeVolume(ctx, v, size, in.Shrink), "resize volume", v.Name)
}

func (c *core) resizeVolume(ctx context.Context, v *mvm.VolumeItem, size int64, shrink bool) error {
	path := c.paths.abs(v.Path)
	have, err := disk.VolumeSize(path, v.Format)
	if err != nil {
		return err
	}
	switch {
	case size < have && v.Format == disk.Raw:
		return mvm.Errorf(mvm.ErrInvalid, "it has %d bytes, and a raw volume cannot become smaller: what is at its end would be lost", have).
			WithHint("ask for more, or make a new one and copy")
	case size < have && !shrink:
		return mvm.Errorf(mvm.ErrConflict, "it has %d bytes; what is beyond %d would be lost", have, size).
			WithHint("make the file system on it smaller first, then resize with --force")
	}
	attached, err := c.st.ListAttachmentsOfVolume(ctx, v.ID)
	if err != nil {
		return err
	}
	for _, a := range attached { // so that one whose VMM has ended does not count as running
		if vm, err := c.st.GetVM(ctx, a.VMID); err == nil {
			c.observe(ctx, c.st, vm)
		}
	}
	return c.journal.Run(ctx, op.Op{
		Kind: opVolumeResize, Subject: v.Name, SubjectID: v.ID,
		Reserve: func(tx *store.Tx) error { return volumeAtRest(ctx, tx, v) },
		Steps:   []op.Step{&resizeStep{c: c, path: path, format: v.Format, size: size, shrink: size < have}},
		Commit: func(tx *store.Tx) error {
			if err := c.recordVolumeSize(tx, v.ID); err != nil {
				return err
			}
			now, err := tx.GetVolume(ctx, v.ID)
			if err == nil {
				*v = *now
			}
			return err
		},
	})
}

// volumeAtRest refuses a volume that a VM may have open.
func volumeAtRest(ctx context.Context, tx *store.Tx, v *mvm.VolumeItem) error {
	users, err := volumeUsers(ctx, tx, v.ID)
	if err != nil {
		return err
	}
	for _, vm := range users {
		if vm.Status != mvm.StatusStopped && vm.Status != mvm.StatusCrashed {
			return mvm.Errorf(mvm.ErrConflict, "VM %s has it and is %s", mvm.Quote(vm.Name), vm.Status).
				WithHint("stop the VM with 'mvm vm stop %s', or detach the volume", vm.Name)
		}
	}
	return nil
}

// recordVolumeSize writes down the size that a volume's file has, if both are there.
func (c *core) recordVolumeSize(tx *store.Tx, id string) error {
	v, err := tx.GetVolume(tx.Context(), id)
	if err == nil {
		v.SizeBytes, err = disk.VolumeSize(c.paths.abs(v.Path), v.Format)
	}
	if errors.Is(err, mvm.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return tx.UpdateVolume(tx.Context(), v)
}

// resizeStep changes the size of a volume's file. What was done is not undone, but
// written down: see recordVolumeSize.
type resizeStep struct {
	c *core

	path   string
	format string
	size   int64
	shrink bool
}

func (s *resizeStep) Kind() string { return "volume-resize" }

func (s *resizeStep) Apply(ctx context.Context) error {
	if s.format == disk.Qcow2 {
		return disk.ResizeQcow2(ctx, s.c.runner, s.path, s.size, s.shrink)
	}
	return disk.GrowVolume(ctx, s.path, s.size)
}

func (s *resizeStep) Revert(context.Context) error { return nil }
