package api

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// SnapshotOperation keeps VMs as they were at one moment, with memory, devices and
// disks, and makes VMs of them.
type SnapshotOperation struct{ core *core }

// SnapshotInput selects snapshots: by name or id prefix.
type SnapshotInput struct{ Identifiers []string }

// SnapshotCreateInput says which VM is kept, and how.
type SnapshotCreateInput struct {
	VM    string // selector
	Name  string // "" makes one of the VM's name and the time
	Pause bool   // leave the VM paused; else one that ran goes on
}

// SnapshotInspect is all there is to know of one snapshot.
type SnapshotInspect struct {
	Snapshot *mvm.SnapshotItem `json:"snapshot"`
	Files    SnapshotPaths     `json:"files"`
	Disks    []SnapshotDisk    `json:"disks"`
	Loadable bool              `json:"loadable"` // here and now
	Problem  string            `json:"problem,omitempty"`
	Restored []string          `json:"restored"` // names of the VMs that were made of it
}

// SnapshotPaths are the files of a snapshot on the host.
type SnapshotPaths struct {
	Directory string `json:"directory"`
	State     string `json:"state"`
	Memory    string `json:"memory"`
}

// SnapshotDisk is a disk of a snapshot.
type SnapshotDisk struct {
	ID       string `json:"id"`   // "rootfs", or the id of a volume
	File     string `json:"file"` // in the snapshot's directory
	Format   string `json:"format"`
	Volume   string `json:"volume,omitempty"` // name of the volume
	Size     int64  `json:"size_bytes"`       // on the host
	ReadOnly bool   `json:"read_only"`        // not part of the snapshot: it does not change

	VirtualSize int64                 `json:"virtual_size_bytes"` // what a guest sees
	FSType      string                `json:"fs_type,omitempty"`
	Attachment  *mvm.VolumeAttachment `json:"attachment,omitempty"`
}

const opSnapshot = "vm.snapshot"

// Create writes a snapshot of a running or paused VM. The guest writes out its
// file systems and stands still while memory and disks are taken, so that they
// agree; then it goes on. A snapshot that fails or is interrupted leaves nothing,
// and the VM as it was.
func (o *SnapshotOperation) Create(ctx context.Context, in SnapshotCreateInput, opts ...Option) (*mvm.SnapshotItem, error) {
	item, err := o.create(ctx, in, options(opts).progress)
	return item, mvm.Wrap(err, "snapshot VM", in.VM)
}

func (o *SnapshotOperation) create(ctx context.Context, in SnapshotCreateInput, progress mvm.ProgressFunc) (*mvm.SnapshotItem, error) {
	if in.VM == "" {
		return nil, mvm.Errorf(mvm.ErrInvalid, "no VM was named").WithHint("name one; see 'mvm vm ls'")
	}
	if in.Name != "" {
		if err := mvm.ValidateName("snapshot", in.Name); err != nil {
			return nil, err
		}
	}
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := c.findVM(ctx, st, in.VM)
	if err != nil {
		return nil, err
	}
	if err := c.requireRoot("a snapshot"); err != nil {
		return nil, err
	}
	id := newID()
	name := firstOf(in.Name, vm.Name+"-"+time.Now().Format("20060102-150405"))
	t, err := c.newCapture(ctx, st, vm, c.paths.snapshot(id), in.Pause)
	if err != nil {
		return nil, err
	}
	t.dirs = []string{c.paths.snapshots()}
	item := &t.meta.Snapshot
	item.ID, item.Name, item.Path = id, name, c.paths.rel(c.paths.snapshot(id))
	say := sync.OnceFunc(func() { progress.Send("snapshot", "writing memory and disks of "+vm.Name) })
	err = t.run(ctx, op.Op{
		UndoData: []byte(id), OnStep: func(string) { say() },
		Reserve: func(tx *store.Tx) error {
			pending := *item
			pending.Path = "" // shows that it is not complete
			return tx.InsertSnapshot(ctx, &pending)
		},
		Commit: func(tx *store.Tx) error { return tx.UpdateSnapshot(ctx, item) },
	}, nil)
	if err != nil {
		return nil, err
	}
	return item, nil
}

// ListAll returns all snapshots, oldest first.
func (o *SnapshotOperation) ListAll(ctx context.Context) ([]*mvm.SnapshotItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	return completeSnapshots(ctx, st.Queries)
}

// completeSnapshots leaves out those that are being written.
func completeSnapshots(ctx context.Context, q store.Queries) ([]*mvm.SnapshotItem, error) {
	all, err := q.ListSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	out := []*mvm.SnapshotItem{}
	for _, s := range all {
		if s.Path != "" {
			out = append(out, s)
		}
	}
	return out, nil
}

// Get returns one snapshot by name or id prefix.
func (o *SnapshotOperation) Get(ctx context.Context, in SnapshotInput) (*mvm.SnapshotItem, error) {
	sel, err := one("snapshot", in.Identifiers)
	if err != nil {
		return nil, err
	}
	all, err := o.ListAll(ctx)
	if err != nil {
		return nil, err
	}
	return pickSnapshot(sel, all)
}

func pickSnapshot(sel string, all []*mvm.SnapshotItem) (*mvm.SnapshotItem, error) {
	cands := make([]candidate[*mvm.SnapshotItem], 0, len(all))
	for _, s := range all {
		cands = append(cands, candidate[*mvm.SnapshotItem]{s, s.Name, [][]string{{s.Name}}, s.ID})
	}
	return pick("snapshot", sel, "see 'mvm snapshot ls', or make one with 'mvm snapshot create VM'", cands)
}

// Inspect returns all that is known of a snapshot, and whether this host can load it.
func (o *SnapshotOperation) Inspect(ctx context.Context, in SnapshotInput) (*SnapshotInspect, error) {
	c := o.core
	item, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	dir := c.paths.abs(item.Path)
	out := &SnapshotInspect{
		Snapshot: item, Files: SnapshotPaths{Directory: dir, State: filepath.Join(dir, snapState), Memory: filepath.Join(dir, snapMem)},
		Disks: []SnapshotDisk{}, Restored: []string{},
	}
	meta, err := readSnapshotMeta(dir)
	if err == nil {
		out.Disks = meta.Disks
		err = c.checkLoadable(ctx, c.st, meta, out.Files)
	}
	out.Loadable = err == nil
	if err != nil {
		out.Problem = err.Error()
	}
	vms, err := c.st.ListVMs(ctx)
	for _, vm := range vms {
		if vm.Options.RestoredFrom == item.ID {
			out.Restored = append(out.Restored, vm.Name)
		}
	}
	return out, err
}

const opSnapshotRemove = "snapshot.remove"

// Remove removes snapshots with their files. VMs that were made of them stay: they
// have disks of their own.
func (o *SnapshotOperation) Remove(ctx context.Context, in SnapshotInput) (mvm.Batch[*mvm.SnapshotItem], error) {
	var batch mvm.Batch[*mvm.SnapshotItem]
	if len(in.Identifiers) == 0 {
		return batch, mvm.Errorf(mvm.ErrInvalid, "no snapshot was named").WithHint("name one or more; see 'mvm snapshot ls'")
	}
	for _, sel := range in.Identifiers {
		item, err := o.Get(ctx, SnapshotInput{Identifiers: []string{sel}})
		if err == nil {
			err = mvm.Wrap(o.core.removeSnapshot(ctx, item), "remove snapshot", item.Name)
		}
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.SnapshotItem]{Identifier: sel, Item: item, Err: err})
	}
	return batch, batch.Err()
}

func (c *core) removeSnapshot(ctx context.Context, item *mvm.SnapshotItem) error {
	return c.journal.Forward(ctx, op.Op{
		Kind: opSnapshotRemove, Subject: item.Name, SubjectID: item.ID,
		Reserve: func(tx *store.Tx) error { _, err := tx.GetSnapshot(ctx, item.ID); return err },
		Steps:   []op.Step{&snapDirStep{c: c, Dir: c.paths.abs(item.Path)}},
	})
}

// neededBySnapshots refuses to remove an image or kernel that a VM restored from a
// snapshot would need.
func neededBySnapshots(ctx context.Context, q interface {
	ListSnapshots(context.Context) ([]*mvm.SnapshotItem, error)
}, use store.Use, id string) error {
	all, err := q.ListSnapshots(ctx)
	if err != nil {
		return err
	}
	for _, s := range all {
		if use == store.UseImage && s.SourceVM.ImageID == id || use == store.UseKernel && s.SourceVM.KernelID == id {
			return mvm.Errorf(mvm.ErrConflict, "snapshot %s needs it", mvm.Quote(s.Name)).
				WithHint("remove the snapshot first with 'mvm snapshot rm %s', or use --force", s.Name)
		}
	}
	return nil
}
