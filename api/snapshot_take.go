package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// The files of a snapshot in its directory. The identity is the guest's, whose
// memory holds it: who has the one has the other.
const (
	snapState    = "state"
	snapMem      = "memory"
	snapMetaFile = "snapshot.json"
)

// snapshotMeta is what has to be known to load a snapshot.
type snapshotMeta struct {
	Version   int              `json:"version"` // 1
	Snapshot  mvm.SnapshotItem `json:"snapshot"`
	Disks     []SnapshotDisk   `json:"disks"`
	Subnet    string           `json:"subnet"` // of the network that the VM was on
	StateSize int64            `json:"state_size"`
	StateSum  string           `json:"state_sha256"`
	MemSize   int64            `json:"memory_size"`
}

const snapshotMetaVersion = 1

func readSnapshotMeta(dir string) (*snapshotMeta, error) {
	data, err := os.ReadFile(filepath.Join(dir, snapMetaFile))
	m := &snapshotMeta{}
	if err == nil {
		err = json.Unmarshal(data, m)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, mvm.Errorf(mvm.ErrBroken, "%s is no snapshot of mvm: %w", dir, err).WithHint("name the files that 'mvm vm snapshot' wrote, and keep the directory beside them")
	case err != nil:
		return nil, mvm.Errorf(mvm.ErrBroken, "the snapshot in %s cannot be read: %w", dir, err).WithHint("make a new one")
	case m.Version != snapshotMetaVersion:
		return nil, mvm.Errorf(mvm.ErrUnsupported, "the snapshot in %s has format %d, this mvm reads %d", dir, m.Version, snapshotMetaVersion).WithHint("use the mvm that made it")
	}
	return m, nil
}

// capture is one snapshot that is being taken.
type capture struct {
	c    *core
	vm   *mvm.VMInstanceItem
	dir  string   // of state, disks and meta
	mem  string   // file of the memory
	dirs []string // to be made before, and kept

	sources []string // the disks' files; "" for those that are not copied
	pause   bool
	meta    snapshotMeta
}

// newCapture checks that a snapshot of a VM can be taken into dir.
func (c *core) newCapture(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, dir string, pause bool) (*capture, error) {
	if !mvm.TransitionOf(mvm.VerbSnapshot).Allows(vm.Status) {
		return nil, refusal(mvm.VerbSnapshot, vm)
	}
	probe := c.driverOf(vm.Hypervisor).Probe(ctx)
	if !probe.Capabilities.Snapshot {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "%s cannot snapshot a VM here", vm.Hypervisor).WithHint("use another --hypervisor")
	}
	t := &capture{c: c, vm: vm, dir: dir, mem: filepath.Join(dir, snapMem), pause: pause}
	kept := *vm
	kept.Handle = nil
	t.meta = snapshotMeta{Version: snapshotMetaVersion, Snapshot: mvm.SnapshotItem{
		VMID: vm.ID, VMName: vm.Name, Hypervisor: vm.Hypervisor, VMMVersion: probe.Version, Accel: vm.Accel, CPU: cpuDigest(vm.Accel),
		VCPUCount: vm.VCPUCount, MemSizeMiB: vm.MemSizeMiB, SourceVM: kept, VolumeIDs: vm.VolumeIDs, CreatedAt: now(), UpdatedAt: now(),
	}}
	if n, err := st.GetNetwork(ctx, vm.NetworkID); err == nil {
		t.meta.Subnet = n.Subnet
	}
	return t, c.captureDisks(ctx, st, t)
}

// captureDisks lists the VM's disks for the snapshot.
func (c *core) captureDisks(ctx context.Context, st *store.Store, t *capture) error {
	volumes, err := attachedVolumes(ctx, st.Queries, t.vm.ID)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if servedTo(t.vm.Hypervisor, v.item) {
			return mvm.Errorf(mvm.ErrUnsupported, "volume %s is %s, and firecracker takes no snapshot of a VM with such a volume", mvm.Quote(v.item.Name), v.item.Format).
				WithHint("detach it with 'mvm volume detach %s %s' and start the VM anew, or keep the data on a raw volume", t.vm.Name, v.item.Name)
		}
	}
	root := vmm.Disk{ID: "rootfs", Path: t.vm.RootfsPath, Format: diskFormat(t.vm.RootfsSuffix)}
	need := int64(t.vm.MemSizeMiB) << 20
	for i, d := range append([]vmm.Disk{root}, asDisks(volumes, c.paths)...) {
		virtual, allocated, err := disk.Sizes(d.Path)
		if err != nil {
			return err
		}
		sd := SnapshotDisk{ID: d.ID, File: d.ID + "." + d.Format, Format: d.Format, Size: allocated, VirtualSize: virtual, ReadOnly: d.ReadOnly}
		if i > 0 {
			v := volumes[i-1]
			sd.Volume, sd.FSType, sd.Attachment = v.item.Name, v.item.FSType, &v.at
		}
		if !d.ReadOnly {
			need += allocated
			t.sources = append(t.sources, d.Path)
		} else {
			t.sources = append(t.sources, "")
		}
		t.meta.Disks = append(t.meta.Disks, sd)
	}
	for at := t.dir; ; at = filepath.Dir(at) { // the nearest directory that is there
		if _, err := os.Stat(at); err == nil || at == "/" {
			return disk.EnoughSpace(at, need)
		}
	}
}

// cpuDigest stands for the host's CPU as a guest sees it: a snapshot is loaded on
// the same model with the same features only. An emulated CPU is everywhere the
// same.
func cpuDigest(accel string) string {
	if accel == "tcg" {
		return "tcg"
	}
	sum := sha256.Sum256([]byte(host.CPU()))
	return hex.EncodeToString(sum[:8])
}

// run takes the snapshot as one operation of the journal. What o has of Reserve
// and Commit is about the snapshot; after are the steps past the writing.
func (t *capture) run(ctx context.Context, o op.Op, after []op.Step) error {
	running := t.vm.Status == mvm.StatusRunning
	reserve, commit := o.Reserve, o.Commit
	o.Kind, o.Subject, o.SubjectID = opSnapshot, t.vm.Name, t.vm.ID
	o.Reserve = func(tx *store.Tx) error {
		before, err := tx.ClaimVM(ctx, t.vm.ID, mvm.VerbSnapshot)
		if err != nil {
			return err
		}
		refresh(t.vm, before)
		return reserve(tx)
	}
	hold := &holdStep{c: t.c, VMID: t.vm.ID, WasRunning: running, take: t}
	o.Steps = append([]op.Step{
		&snapDirStep{c: t.c, Dir: t.dir, parents: t.dirs},
		hold,
		&memoryStep{c: t.c, Mem: t.mem, take: t},
		&snapDisksStep{take: t},
	}, after...)
	if running && !t.pause {
		o.Steps = append(o.Steps, &releaseStep{c: t.c, VMID: t.vm.ID})
	}
	o.Commit = func(tx *store.Tx) error {
		to := t.vm.Status
		if t.pause {
			to = mvm.StatusPaused
		}
		if err := settle(ctx, tx, t.vm, to, "snapshot "+firstOf(t.meta.Snapshot.Name, "written")+" taken"); err != nil {
			return err
		}
		return commit(tx)
	}
	return t.c.journal.Run(ctx, o)
}

// holdStep has the guest write out its file systems and stops its vCPUs.
type holdStep struct {
	c          *core
	VMID       string `json:"vm_id"`
	WasRunning bool   `json:"was_running"`

	take *capture
}

func (s *holdStep) Kind() string { return "hold" }

func (s *holdStep) Apply(ctx context.Context) error {
	if !s.WasRunning {
		return nil
	}
	m, err := s.c.attach(ctx, s.take.vm)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	s.take.meta.Snapshot.QuiescedGuest = s.c.quiesce(ctx, s.take.vm, m)
	p, ok := m.(vmm.Pauser)
	if !ok {
		return mvm.Errorf(mvm.ErrUnsupported, "%s cannot pause a VM", s.take.vm.Hypervisor).WithHint("use another --hypervisor")
	}
	return p.Pause(ctx)
}

func (s *holdStep) Revert(ctx context.Context) error {
	if !s.WasRunning {
		return nil
	}
	return s.c.goOn(ctx, s.VMID)
}

// quiesceLimit bounds how long a guest may take to write out its file systems
// before it is stopped all the same.
const quiesceLimit = 15 * time.Second

// quiesce has the guest's agent write out the file systems, and reports whether it
// did. Without that the disks are as after a power failure, and the memory has the
// rest: they agree all the same.
func (c *core) quiesce(ctx context.Context, vm *mvm.VMInstanceItem, m vmm.Machine) bool {
	if !vm.HasAgent {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, quiesceLimit)
	defer cancel()
	login, err := c.agentLogin(vm)
	if err != nil {
		return false
	}
	client, err := guest.Dial(ctx, c.dialAgent(vm, m), login)
	if err != nil {
		return false
	}
	defer func() { _ = client.Close() }()
	return client.Sync(ctx) == nil
}

// goOn has a VM that was stopped for a snapshot go on. One that is gone stays so.
func (c *core) goOn(ctx context.Context, vmID string) error {
	vm, err := c.st.GetVM(ctx, vmID)
	if errors.Is(err, mvm.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := c.attach(ctx, vm)
	if errors.Is(err, vmm.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	p, ok := m.(vmm.Pauser)
	if !ok {
		return nil
	}
	if state, err := m.State(ctx); err != nil || state != vmm.StatePaused {
		return err
	}
	if err := p.Resume(ctx); err != nil {
		return err
	}
	c.setClock(ctx, vm, m)
	return nil
}

// releaseStep has the VM go on.
type releaseStep struct {
	c    *core
	VMID string `json:"vm_id"`
}

func (s *releaseStep) Kind() string                    { return "release" }
func (s *releaseStep) Apply(ctx context.Context) error { return s.c.goOn(ctx, s.VMID) }
func (s *releaseStep) Revert(context.Context) error    { return nil }

// snapDirStep makes the directory of a snapshot, whose name nobody else uses: it
// has a random id.
type snapDirStep struct {
	c   *core
	Dir string `json:"dir"`

	parents []string
}

func (s *snapDirStep) Kind() string { return "snapshot-dir" }

func (s *snapDirStep) Apply(context.Context) error {
	for _, dir := range s.parents {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return os.Mkdir(s.Dir, 0o700)
}

// stagedName is the form of names that only mvm makes: of snapshots in the cache,
// and of what is being written elsewhere.
var stagedName = regexp.MustCompile(`^([0-9a-f]{16}|\..*\.mvm-[0-9a-f]{16})$`)

func (s *snapDirStep) Revert(context.Context) error {
	if !stagedName.MatchString(filepath.Base(s.Dir)) {
		return mvm.Errorf(mvm.ErrBroken, "%s is no directory of a snapshot", mvm.Quote(s.Dir))
	}
	return os.RemoveAll(s.Dir)
}

// memoryStep writes memory and devices.
type memoryStep struct {
	c   *core
	Mem string `json:"mem"` // "" when it is in the snapshot's directory, which is removed as a whole

	take *capture
}

func (s *memoryStep) Kind() string { return "memory" }

func (s *memoryStep) Apply(ctx context.Context) error {
	m, err := s.c.attach(ctx, s.take.vm)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	sn, ok := m.(vmm.Snapshotter)
	if !ok {
		return mvm.Errorf(mvm.ErrUnsupported, "%s cannot snapshot a VM", s.take.vm.Hypervisor).WithHint("use another --hypervisor")
	}
	state := filepath.Join(s.take.dir, snapState)
	if err := sn.Snapshot(ctx, vmm.SnapshotFiles{State: state, Mem: s.take.mem}); err != nil {
		return err
	}
	meta := &s.take.meta
	if meta.StateSize, meta.StateSum, err = fileSum(state); err != nil {
		return err
	}
	st, err := os.Stat(s.take.mem)
	if err != nil {
		return err
	}
	meta.MemSize = st.Size()
	return nil
}

func (s *memoryStep) Revert(context.Context) error {
	if base := filepath.Base(s.Mem); base == snapMem || !stagedName.MatchString(base) {
		return nil
	}
	return removeFile(s.Mem)
}

func fileSum(path string) (int64, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return n, hex.EncodeToString(h.Sum(nil)), err
}

// snapDisksStep copies the disks that the guest can write to, and writes down what
// the snapshot is. They are removed with the directory.
type snapDisksStep struct{ take *capture }

func (s *snapDisksStep) Kind() string { return "snapshot-disks" }

func (s *snapDisksStep) Apply(ctx context.Context) error {
	t := s.take
	size := t.meta.StateSize
	for i, d := range t.meta.Disks {
		if d.ReadOnly {
			continue
		}
		if err := disk.CloneDisk(ctx, t.sources[i], d.Format, filepath.Join(t.dir, d.File)); err != nil {
			return err
		}
		size += d.Size
	}
	if st, err := os.Stat(t.mem); err == nil {
		size += st.Size()
	}
	t.meta.Snapshot.SizeBytes = size
	identity, err := os.ReadFile(filepath.Join(t.c.paths.vm(t.vm.ID), identityName))
	if err != nil {
		return err
	}
	if err := fsx.WriteFile(filepath.Join(t.dir, identityName), identity, 0o600); err != nil {
		return err
	}
	data, err := json.MarshalIndent(t.meta, "", "  ")
	if err != nil {
		return err
	}
	return fsx.WriteFile(filepath.Join(t.dir, snapMetaFile), data, 0o600)
}

func (s *snapDisksStep) Revert(context.Context) error { return nil }

// publishStep gives a snapshot that was written under names of ours those that the
// user chose. None of them may be taken: rename(2) with RENAME_NOREPLACE decides.
// The directory goes first, with a note of which files follow: by that Revert knows
// what is ours, whatever else was taken back before.
type publishStep struct {
	Staged    string `json:"staged"` // the directory, with the state in it
	StagedMem string `json:"staged_mem"`
	Dir       string `json:"dir"`
	State     string `json:"state"`
	Mem       string `json:"mem"`
}

// published is the note in the directory.
type published struct {
	Staged string   `json:"staged"` // whose it is: the name has a random id
	Files  [2]inode `json:"files"`  // state and memory
}

type inode struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

const publishedFile = "published.json"

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return inode{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return inode{st.Dev, st.Ino}, nil
}

func (s *publishStep) Kind() string { return "publish" }

func (s *publishStep) Apply(context.Context) error {
	state, err1 := inodeOf(filepath.Join(s.Staged, snapState))
	mem, err2 := inodeOf(s.StagedMem)
	note, err3 := json.Marshal(published{s.Staged, [2]inode{state, mem}})
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if err := fsx.WriteFile(filepath.Join(s.Staged, publishedFile), note, 0o600); err != nil {
		return err
	}
	for _, move := range [][2]string{{s.Staged, s.Dir}, {filepath.Join(s.Dir, snapState), s.State}, {s.StagedMem, s.Mem}} {
		if err := rename(move[0], move[1]); err != nil {
			return err
		}
	}
	return nil
}

func (s *publishStep) Revert(context.Context) error {
	var note published
	data, err := os.ReadFile(filepath.Join(s.Dir, publishedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &note); err != nil || note.Staged != s.Staged {
		return nil //nolint:nilerr // not ours: whoever made it had the name first
	}
	for i, path := range []string{s.State, s.Mem} {
		if have, err := inodeOf(path); err == nil && have == note.Files[i] {
			if err := removeFile(path); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(s.Dir)
}

func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		return mvm.Errorf(mvm.ErrExists, "%s is there already", to).WithHint("choose another name, or remove it first")
	}
	return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
}
