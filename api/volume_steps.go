package api

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// attach records the attachment and plugs the disk into a VM that runs.
func (ch *volumeChange) attach(ctx context.Context) error {
	running, err := ch.running("attach")
	if err != nil {
		return err
	}
	vm, v, a := ch.res.VM, ch.res.Volume, &ch.res.Attachment
	if kept, err := ch.keep(ctx); kept || err != nil {
		return err
	}
	if err := ch.fits(ctx); err != nil {
		return err
	}
	plug := &plugStep{plugged: plugged{c: ch.c, VMID: vm.ID, Volume: v.ID}, disk: vmVolume{v, *a}.disk(ch.c.paths)}
	var steps []op.Step
	if running {
		steps = append(steps, plug)
	}
	err = ch.run(ctx, opAttach, func(tx *store.Tx) error { return tx.AttachVolume(ctx, a) }, steps, func(tx *store.Tx) error {
		if !plug.later {
			return nil
		}
		a.Pending = mvm.PendingAttach
		return tx.PendAttachment(ctx, v.ID, vm.ID, a.Pending)
	})
	if err != nil {
		return err
	}
	ch.res.Live = running && !plug.later
	if plug.later {
		ch.res.warn("%s runs on without it and has it from its next start on: %s", vm.Name, plug.why)
	}
	return nil
}

// keep takes back a detaching that the VM has not seen yet.
func (ch *volumeChange) keep(ctx context.Context) (bool, error) {
	old, err := ch.present(ctx)
	if err != nil || old == nil || old.Pending != mvm.PendingDetach || old.IsReadOnly != ch.res.Attachment.IsReadOnly || old.MountPoint != ch.res.Attachment.MountPoint {
		return false, err
	}
	ch.res.Attachment, ch.res.Live = *old, true
	ch.res.Attachment.Pending = mvm.PendingNone
	return true, ch.run(ctx, opAttach, func(*store.Tx) error { return nil }, nil, func(tx *store.Tx) error {
		return tx.PendAttachment(ctx, old.VolumeID, old.VMID, mvm.PendingNone)
	})
}

// present returns how the VM has the volume now, or nil.
func (ch *volumeChange) present(ctx context.Context) (*mvm.VolumeAttachment, error) {
	all, err := ch.c.st.ListAttachmentsOfVM(ctx, ch.res.VM.ID)
	i := slices.IndexFunc(all, func(a mvm.VolumeAttachment) bool { return a.VolumeID == ch.res.Volume.ID })
	if err != nil || i < 0 {
		return nil, err
	}
	return &all[i], nil
}

// fits checks the VM with the volume as its start would be.
func (ch *volumeChange) fits(ctx context.Context) error {
	vm := *ch.res.VM
	p := &vmPlan{c: ch.c, item: &vm, volumes: []vmVolume{{ch.res.Volume, ch.res.Attachment}}}
	if err := p.checkVolumes(); err != nil {
		return err
	}
	d, probe, _, err := ch.c.chooseDriver(ctx, ch.c.st, vm.Hypervisor, "", vm.BinaryID)
	if err != nil {
		return nil //nolint:nilerr // its start will say what is missing; that is not the volume's business
	}
	p.driver, p.probe = d, probe
	return p.volumesFit()
}

// plugStep plugs a disk into a running VM. Where that cannot be done, it is for later.
type plugStep struct {
	plugged

	disk  vmm.Disk
	later bool
	why   string
}

func (s *plugStep) Kind() string { return "plug" }

func (s *plugStep) Apply(ctx context.Context) error {
	err := s.with(ctx, func(ctx context.Context, h vmm.DiskHotplugger) error { return h.AttachDisk(ctx, s.disk) })
	if errors.Is(err, mvm.ErrUnsupported) {
		s.later, s.why = true, err.Error()
		return nil
	}
	return err
}

// Revert takes the disk out. A guest that does not release it keeps it until it
// ends: until then nobody else may have the volume.
func (s *plugStep) Revert(ctx context.Context) error {
	err := s.takeOut(ctx)
	if errors.Is(err, mvm.ErrBusy) {
		return s.c.st.PendAttachment(ctx, s.Volume, s.VMID, mvm.PendingDetach)
	}
	if errors.Is(err, mvm.ErrUnsupported) {
		return nil
	}
	return err
}

// unattach takes back an attachment, unless the guest would not have it taken out.
func unattach(tx *store.Tx, vmID string, data []byte) error {
	var was changed
	if err := json.Unmarshal(data, &was); err != nil {
		return mvm.Errorf(mvm.ErrBroken, "the journal's record of a volume: %w", err)
	}
	all, err := tx.ListAttachmentsOfVM(tx.Context(), vmID)
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.VolumeID == was.Volume && a.Pending == mvm.PendingDetach {
			return nil
		}
	}
	return tx.DetachVolume(tx.Context(), was.Volume, vmID)
}

// detach takes the disk out of a VM that runs and forgets the attachment.
func (ch *volumeChange) detach(ctx context.Context, force bool) error {
	running, err := ch.running("detach")
	if err != nil {
		return err
	}
	vm, v := ch.res.VM, ch.res.Volume
	a, err := ch.present(ctx)
	switch {
	case err != nil:
		return err
	case a == nil:
		return mvm.Errorf(mvm.ErrNotFound, "the VM does not have it").WithHint("'mvm volume inspect %s' shows which has", v.Name)
	case a.Pending == mvm.PendingDetach:
		return mvm.Errorf(mvm.ErrConflict, "the VM has it only until it ends").WithHint("stop it with 'mvm vm stop %s'", vm.Name)
	}
	ch.res.Attachment = *a
	unplug := &unplugStep{plugged: plugged{c: ch.c, VMID: vm.ID, Volume: v.ID}, disk: vmVolume{v, *a}.disk(ch.c.paths)}
	var steps []op.Step
	if running && a.Pending != mvm.PendingAttach {
		if !force {
			if unplug.later, unplug.why, err = ch.releaseGuest(ctx); err != nil {
				return err
			}
		}
		steps = append(steps, unplug)
	}
	err = ch.run(ctx, opDetach, func(*store.Tx) error { return nil }, steps, func(tx *store.Tx) error {
		if !unplug.later {
			return tx.DetachVolume(ctx, v.ID, vm.ID)
		}
		ch.res.Attachment.Pending = mvm.PendingDetach
		return tx.PendAttachment(ctx, v.ID, vm.ID, mvm.PendingDetach)
	})
	if err != nil {
		if len(steps) > 0 {
			_ = ch.showGuest(context.WithoutCancel(ctx)) // it was unmounted, and is there still
		}
		return err
	}
	ch.res.Live = len(steps) > 0 && !unplug.later
	if unplug.later {
		ch.res.warn("%s has it until it ends: %s", vm.Name, unplug.why)
	}
	return nil
}

// unplugStep takes a disk out of a running VM.
type unplugStep struct {
	plugged

	disk  vmm.Disk
	later bool
	why   string
}

func (s *unplugStep) Kind() string { return "unplug" }

func (s *unplugStep) Apply(ctx context.Context) error {
	if s.later {
		return nil
	}
	err := s.takeOut(ctx)
	if errors.Is(err, mvm.ErrUnsupported) {
		s.later, s.why = true, err.Error()
		return nil
	}
	return err
}

// Revert leaves a VM without the disk, if it was taken out: the record then says
// that the VM has it again from its next start on.
func (s *unplugStep) Revert(ctx context.Context) error {
	vm, err := s.c.st.GetVM(ctx, s.VMID)
	if err != nil || !alive(vm) {
		return nil //nolint:nilerr // nobody runs without the disk
	}
	d := s.disk
	if d.ID == "" { // found by the next command
		volumes, err := attachedVolumes(ctx, s.c.st.Queries, s.VMID)
		i := slices.IndexFunc(volumes, func(v vmVolume) bool { return v.item.ID == s.Volume })
		if err != nil || i < 0 {
			return err
		}
		d = volumes[i].disk(s.c.paths)
	}
	err = s.with(ctx, func(ctx context.Context, h vmm.DiskHotplugger) error { return h.AttachDisk(ctx, d) })
	if err == nil || errors.Is(err, mvm.ErrExists) || errors.Is(err, mvm.ErrUnsupported) || errors.Is(err, vmm.ErrGone) {
		return nil
	}
	return s.c.st.PendAttachment(ctx, s.Volume, s.VMID, mvm.PendingAttach)
}
