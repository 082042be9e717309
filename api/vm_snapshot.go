package api

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

const opLoad = "vm.load"

// besideState is the directory beside a snapshot's state file, with the disks and
// what is needed to check before loading.
func besideState(state string) string { return state + ".mvm" }

// Snapshot writes memory and state of one running or paused VM to two files, and
// its disks to a directory beside the second, STATE.mvm: only together do they
// agree. Neither may exist. The VM goes on afterwards as it was.
func (o *VMOperation) Snapshot(ctx context.Context, in VMInput, memOut, stateOut string, opts ...Option) (*mvm.VMInstanceItem, error) {
	sel, err := one("VM", in.Identifiers)
	if err != nil {
		return nil, err
	}
	vm, err := o.snapshotTo(ctx, sel, memOut, stateOut, options(opts).progress)
	return vm, mvm.Wrap(err, "snapshot VM", sel)
}

func (o *VMOperation) snapshotTo(ctx context.Context, sel, memOut, stateOut string, progress mvm.ProgressFunc) (*mvm.VMInstanceItem, error) {
	paths, err := freePaths(memOut, stateOut)
	if err != nil {
		return nil, err
	}
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := c.findVM(ctx, st, sel)
	if err != nil {
		return nil, err
	}
	if err := c.requireRoot("a snapshot"); err != nil {
		return nil, err
	}
	mem, state, id := paths[0], paths[1], newID()
	t, err := c.newCapture(ctx, st, vm, staged(state, id), false)
	if err != nil {
		return nil, err
	}
	t.mem = staged(mem, id)
	t.meta.Snapshot.ID = id
	say := sync.OnceFunc(func() { progress.Send("snapshot", "writing memory and disks of "+vm.Name) })
	nothing := func(*store.Tx) error { return nil }
	err = t.run(ctx, op.Op{Reserve: nothing, Commit: nothing, OnStep: func(string) { say() }}, []op.Step{&publishStep{Staged: t.dir, StagedMem: t.mem, Dir: besideState(state), State: state, Mem: mem}})
	return vm, err
}

// staged is the name that a file has while it is written, in the same directory.
func staged(path, id string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".mvm-"+id)
}

// freePaths returns the absolute paths of the files to write; none may be taken.
func freePaths(memOut, stateOut string) ([2]string, error) {
	var abs [2]string
	for i, p := range []string{memOut, stateOut} {
		if p == "" {
			return abs, mvm.Errorf(mvm.ErrInvalid, "a snapshot needs a file for the memory and one for the state").WithHint("write for example: mvm vm snapshot web web.mem web.state")
		}
		a, err := filepath.Abs(p)
		if err != nil {
			return abs, err
		}
		abs[i] = a
	}
	if abs[0] == abs[1] {
		return abs, mvm.Errorf(mvm.ErrInvalid, "memory and state cannot both go to %s", abs[0]).WithHint("name two files")
	}
	for _, p := range []string{abs[0], abs[1], besideState(abs[1])} {
		if dir, err := os.Stat(filepath.Dir(p)); err != nil || !dir.IsDir() {
			return abs, mvm.Errorf(mvm.ErrNotFound, "there is no directory %s", filepath.Dir(p)).WithHint("make it first")
		}
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			return abs, mvm.Errorf(mvm.ErrExists, "%s is there already", p).WithHint("choose another name, or remove it first")
		}
	}
	return abs, nil
}

// LoadSnapshot puts one stopped VM back to what Snapshot wrote: memory, devices and
// disks. What the VM wrote to its disks since is lost. The VM is paused afterwards,
// or runs when resume is true. The files stay and can be loaded again.
func (o *VMOperation) LoadSnapshot(ctx context.Context, in VMInput, memIn, stateIn string, resume bool, opts ...Option) (*mvm.VMInstanceItem, error) {
	sel, err := one("VM", in.Identifiers)
	if err != nil {
		return nil, err
	}
	vm, err := o.load(ctx, sel, memIn, stateIn, resume, options(opts).progress)
	return vm, mvm.Wrap(err, "load a snapshot into VM", sel)
}

func (o *VMOperation) load(ctx context.Context, sel, memIn, stateIn string, resume bool, progress mvm.ProgressFunc) (*mvm.VMInstanceItem, error) {
	if memIn == "" || stateIn == "" {
		return nil, mvm.Errorf(mvm.ErrInvalid, "loading needs the file of the memory and that of the state").WithHint("write for example: mvm vm load web web.mem web.state")
	}
	mem, err1 := filepath.Abs(memIn)
	state, err2 := filepath.Abs(stateIn)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	meta, err := readSnapshotMeta(besideState(state))
	if err != nil {
		return nil, err
	}
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := c.findVM(ctx, st, sel)
	if err != nil {
		return nil, err
	}
	if err := c.requireRoot("loading a snapshot"); err != nil {
		return nil, err
	}
	if !mvm.TransitionOf(mvm.VerbLoad).Allows(vm.Status) {
		return nil, refusal(mvm.VerbLoad, vm)
	}
	if err := c.checkLoadable(ctx, st, meta, SnapshotPaths{State: state, Memory: mem}); err != nil {
		return nil, err
	}
	if err := sameShape(meta, vm); err != nil {
		return nil, err
	}
	progress.Send("load", "loading "+vm.Name)
	return vm, c.loadInto(ctx, st, vm, &loading{meta: meta, dir: besideState(state), state: state, mem: mem, resume: resume})
}

// sameShape compares the devices of a VM with those of the one that was written.
func sameShape(meta *snapshotMeta, vm *mvm.VMInstanceItem) error {
	was := &meta.Snapshot.SourceVM
	for _, f := range []struct {
		what      string
		have, was any
	}{
		{"hypervisor", vm.Hypervisor, was.Hypervisor}, {"vCPUs", vm.VCPUCount, was.VCPUCount}, {"memory in MiB", vm.MemSizeMiB, was.MemSizeMiB},
		{"PCI", vm.PCIEnabled, was.PCIEnabled}, {"agent", vm.HasAgent, was.HasAgent}, {"volumes", len(vm.VolumeIDs), len(was.VolumeIDs)},
		{"cloud-init ISO", hasISO(vm), hasISO(was)},
	} {
		if f.have != f.was {
			return mvm.Errorf(mvm.ErrConflict, "the snapshot is of a VM with other devices (%s: %v, not %v)", f.what, f.was, f.have).
				WithHint("load it into %s, or make a VM of it with 'mvm snapshot restore'", was.Name)
		}
	}
	return nil
}

// loading is a snapshot that is being loaded.
type loading struct {
	meta       *snapshotMeta
	dir        string // of disks and identity
	state, mem string
	resume     bool
}

func (l *loading) restore(resume bool) *vmm.Restore {
	return &vmm.Restore{State: l.state, Mem: l.mem, Resume: resume}
}

func (c *core) loadInto(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, l *loading) error {
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return err
	}
	p, err := c.planStart(ctx, st, inv, vm)
	if err != nil {
		return err
	}
	if p.initrd, err = c.buildInitramfs(ctx, p.kernel, p.bootFSTypes()); err != nil {
		return err
	}
	another := l.meta.Snapshot.VMID != vm.ID
	if another && !vm.HasAgent {
		return noNewIdentity()
	}
	p.restore = l.restore(l.resume || another)
	undo, err := json.Marshal(claimed{vm.Status, vm.StatusReason})
	if err != nil {
		return err
	}
	swaps, err := c.swapSteps(ctx, st, vm, l)
	if err != nil {
		return err
	}
	steps := append([]op.Step{&clearStep{c: c, VMID: vm.ID, Tap: vm.TapDevice}}, swaps...)
	steps = append(steps, p.startSteps()...)
	if another {
		steps = append(steps, &becomeStep{c: c, plan: p, from: l})
	}
	to := mvm.StatusPaused
	if l.resume {
		to = mvm.StatusRunning
	}
	err = c.journal.Run(ctx, op.Op{
		Kind: opLoad, Subject: vm.Name, SubjectID: vm.ID, UndoData: undo,
		Reserve: func(tx *store.Tx) error {
			if _, err := tx.ClaimVM(ctx, vm.ID, mvm.VerbLoad); err != nil {
				return err
			}
			return p.reserveJailOf(ctx, tx)
		},
		Steps: steps,
		Commit: func(tx *store.Tx) error {
			if err := p.commitAs(ctx, tx, to, "loaded from a snapshot"); err != nil {
				return err
			}
			var old []string
			for _, s := range swaps {
				old = append(old, s.(*swapStep).old())
			}
			return noteSweep(ctx, tx, old...)
		},
	})
	if err != nil {
		return err
	}
	c.sweep(ctx, st)
	if l.resume && !another {
		if m, err := c.attach(ctx, vm); err == nil {
			c.setClock(ctx, vm, m)
			_ = m.Close()
		}
	}
	return nil
}

// swapSteps replace the disks that the guest can write to by those of a snapshot.
func (c *core) swapSteps(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, l *loading) ([]op.Step, error) {
	volumes, err := attachedVolumes(ctx, st.Queries, vm.ID)
	if err != nil {
		return nil, err
	}
	paths := []string{vm.RootfsPath}
	for _, d := range asDisks(volumes, c.paths) {
		paths = append(paths, d.Path)
	}
	if len(paths) != len(l.meta.Disks) {
		return nil, mvm.Errorf(mvm.ErrConflict, "the snapshot has %d disks, the VM %d", len(l.meta.Disks), len(paths)).WithHint("attach the volumes that it had")
	}
	var steps []op.Step
	for i, d := range l.meta.Disks {
		if !d.ReadOnly {
			steps = append(steps, &swapStep{Path: paths[i], Token: newID(), from: filepath.Join(l.dir, d.File), format: d.Format})
		}
	}
	return steps, nil
}

// swapStep puts a copy of a disk in the place of a VM's. The old one is kept until
// the operation has ended, under a name of this operation's own: what an earlier
// one has left must never come back.
type swapStep struct {
	Path  string `json:"path"`
	Token string `json:"token"`

	from, format string
}

func (s *swapStep) Kind() string { return "swap" }
func (s *swapStep) old() string  { return s.Path + swapOld + s.Token }
func (s *swapStep) next() string { return s.Path + ".loading-" + s.Token }

const swapOld = ".before-load-"

func (s *swapStep) Apply(ctx context.Context) error {
	if err := disk.CloneDisk(ctx, s.from, s.format, s.next()); err != nil {
		return err
	}
	// From here to the rename there is always one file of each name or none missing
	// that Revert could not put back.
	if err := os.Link(s.Path, s.old()); err != nil {
		return err
	}
	return os.Rename(s.next(), s.Path)
}

// Revert puts the old disk back, where there is one.
func (s *swapStep) Revert(context.Context) error {
	err := os.Rename(s.old(), s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	// Where both names are one file, rename(2) leaves both.
	return errors.Join(err, removeFile(s.old()), removeFile(s.next()))
}
