package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

const (
	opAttach = "vm.attach"
	opDetach = "vm.detach"
)

// VMVolumeChange is what attaching or detaching a volume did.
type VMVolumeChange struct {
	VM         *mvm.VMInstanceItem  `json:"vm"`
	Volume     *mvm.VolumeItem      `json:"volume"`
	Attachment mvm.VolumeAttachment `json:"attachment"`
	Live       bool                 `json:"live"`     // a running VM saw it at once
	Device     string               `json:"device"`   // in the guest, "/dev/vdb"; "" when nobody can tell
	Warnings   []string             `json:"warnings"` // what the user has to know or do
}

func (r *VMVolumeChange) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// volumeChange is one change under way.
type volumeChange struct {
	c    *core
	res  *VMVolumeChange
	disk vmm.Disk
}

// AttachVolume gives a VM a volume, named as NAME[:ro|:rw][:/MOUNT/POINT]. A running
// VM gets it at once where its hypervisor can, else at its next start, of which a
// warning tells; any other VM has it when it starts. Where a mount point is given
// the guest mounts it there, now and at each start; a guest that cannot now is an
// error beside the result, as the volume is attached all the same.
func (o *VMOperation) AttachVolume(ctx context.Context, in VMInput, volume string) (*VMVolumeChange, error) {
	spec, err := parseVolumeSpec(volume)
	if err != nil {
		return nil, err
	}
	ch, err := o.core.findChange(ctx, in, spec.volume)
	if err != nil {
		return nil, err
	}
	vm, v := ch.res.VM, ch.res.Volume
	if ch.res.Attachment, err = spec.attachment(v, vm.ID); err == nil {
		err = ch.attach(ctx)
	}
	if err != nil {
		return nil, mvm.Wrap(err, "attach volume "+mvm.Quote(v.Name)+" to", vm.Name)
	}
	if ch.res.Live {
		err = ch.showGuest(ctx)
	}
	return ch.res, mvm.Wrap(err, "mount volume "+mvm.Quote(v.Name)+" in", vm.Name)
}

// DetachVolume takes a volume from a VM. In a running guest it is unmounted first,
// by the agent; what uses it there keeps it attached, unless Force is set, which does
// not ask the guest. Where the hypervisor cannot take a disk out, the VM has it until
// it ends, of which a warning tells.
func (o *VMOperation) DetachVolume(ctx context.Context, in VMInput, volume string) (*VMVolumeChange, error) {
	ch, err := o.core.findChange(ctx, in, volume)
	if err != nil {
		return nil, err
	}
	if err := ch.detach(ctx, in.Force); err != nil {
		return nil, mvm.Wrap(err, "detach volume "+mvm.Quote(ch.res.Volume.Name)+" from", ch.res.VM.Name)
	}
	return ch.res, nil
}

// findChange finds the VM and the volume of a change.
func (c *core) findChange(ctx context.Context, in VMInput, volume string) (*volumeChange, error) {
	sel, err := one("VM", in.Identifiers)
	if err != nil {
		return nil, err
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := c.findVM(ctx, st, sel)
	if err != nil {
		return nil, err
	}
	all, err := st.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	v, err := pickVolume(volume, all)
	if err != nil {
		return nil, err
	}
	return &volumeChange{c: c, res: &VMVolumeChange{VM: vm, Volume: v, Warnings: []string{}}}, nil
}

// running reports whether the VM's VMM is there to be asked, and refuses the phases
// in which a change cannot be made.
func (ch *volumeChange) running(verb string) (bool, error) {
	vm := ch.res.VM
	switch vm.Status {
	case mvm.StatusStopped, mvm.StatusCrashed:
		return false, nil
	case mvm.StatusRunning:
		return true, ch.c.requireRoot("changing a running VM")
	case mvm.StatusPaused:
		return false, mvm.Errorf(mvm.ErrConflict, "the VM is paused, and its guest cannot take part").WithHint("resume it with 'mvm vm resume %s'", vm.Name)
	}
	return false, mvm.Errorf(mvm.ErrConflict, "the VM is %s", vm.Status).WithHint("'mvm vm inspect %s' shows what happens to it", vm.Name)
}

// changed is what the undoing of a change needs.
type changed struct {
	Volume string `json:"volume_id"`
}

// run makes the change under the VM's operation, which nothing else can work on
// meanwhile.
func (ch *volumeChange) run(ctx context.Context, kind string, reserve func(*store.Tx) error, steps []op.Step, commit func(*store.Tx) error) error {
	undo, err := json.Marshal(changed{ch.res.Volume.ID})
	if err != nil {
		return err
	}
	vm := ch.res.VM
	return ch.c.journal.Run(ctx, op.Op{
		Kind: kind, Subject: vm.Name, SubjectID: vm.ID, UndoData: undo, Steps: steps,
		Reserve: func(tx *store.Tx) error {
			stored, err := tx.GetVM(ctx, vm.ID)
			if err != nil {
				return err
			}
			if stored.Status != vm.Status || string(stored.Handle) != string(vm.Handle) {
				return mvm.Errorf(mvm.ErrBusy, "the VM changed from %s to %s meanwhile", vm.Status, stored.Status).WithHint("try again")
			}
			if err := volumeFree(ctx, tx, ch.res.Volume.ID); err != nil {
				return err
			}
			return reserve(tx)
		},
		Commit: func(tx *store.Tx) error {
			if err := commit(tx); err != nil {
				return err
			}
			return ch.reload(ctx, tx, kind)
		},
	})
}

// reload reads what the change made of VM and volume, and notes it in the VM's
// history.
func (ch *volumeChange) reload(ctx context.Context, tx *store.Tx, kind string) error {
	verb := map[string]string{opAttach: "attached", opDetach: "detached"}[kind]
	if err := tx.AppendEvent(ctx, event(ch.res.VM, "volume", ch.res.VM.Status, "volume "+ch.res.Volume.Name+" "+verb)); err != nil {
		return err
	}
	vm, err := tx.GetVM(ctx, ch.res.VM.ID)
	if err != nil {
		return err
	}
	v, err := tx.GetVolume(ctx, ch.res.Volume.ID)
	if err != nil {
		return err
	}
	*ch.res.VM, *ch.res.Volume = *vm, *v
	return nil
}

// plugLimit is how long a VMM, and with it the guest, may take to take or release a disk.
const plugLimit = 20 * time.Second

// plugged is a disk of a running VM, for steps that put it in or take it out.
type plugged struct {
	c      *core
	VMID   string `json:"vm_id"`
	Volume string `json:"volume_id"`
}

// with calls do on the VM's machine. A machine that cannot change its disks is
// mvm.ErrUnsupported, one that has ended vmm.ErrGone.
func (s *plugged) with(ctx context.Context, do func(context.Context, vmm.DiskHotplugger) error) error {
	vm, err := s.c.st.GetVM(ctx, s.VMID)
	if err != nil {
		return err
	}
	m, err := s.c.attach(ctx, vm)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	h, ok := m.(vmm.DiskHotplugger)
	if !ok {
		return mvm.Errorf(mvm.ErrUnsupported, "%s cannot change the disks of a running VM", vm.Hypervisor).WithHint("stop the VM first")
	}
	ctx, cancel := context.WithTimeout(ctx, plugLimit)
	defer cancel()
	return do(ctx, h)
}

func (s *plugged) takeOut(ctx context.Context) error {
	err := s.with(ctx, func(ctx context.Context, h vmm.DiskHotplugger) error {
		v, err := s.c.st.GetVolume(ctx, s.Volume)
		if errors.Is(err, mvm.ErrNotFound) {
			v, err = &mvm.VolumeItem{ID: s.Volume}, nil
		}
		if err != nil {
			return err
		}
		return h.DetachDisk(ctx, volumeDiskID(v))
	})
	if errors.Is(err, mvm.ErrNotFound) { // the disk, the VMM or the VM is gone
		return nil
	}
	return err
}
