package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Snapshot implements vmm.Snapshotter. Connections to the guest's vsock are dead
// afterwards.
func (m *machine) Snapshot(ctx context.Context, to vmm.SnapshotFiles) error {
	if err := to.Check(); err != nil {
		return err
	}
	if err := m.canSnapshot(ctx, to.Diff); err != nil {
		return err
	}
	s, err := m.newStage(to)
	if err == nil {
		defer s.remove()
		request := SnapshotCreate{State: s.state.seen, Mem: s.mem.seen, Type: "Full"}
		if to.Diff {
			request.Type = "Diff"
		}
		if err = m.api.CreateSnapshot(ctx, request); err == nil {
			err = s.keep(ctx, to)
		}
	}
	var known *mvm.Error
	switch {
	case err == nil || ctx.Err() != nil || errors.As(err, &known):
		return err
	case refused(err, "while running"):
		return running(err)
	}
	return mvm.Errorf(mvm.ErrUnavailable, "the snapshot cannot be written: %w", err).
		WithHint("see whether %s has space for the VM's memory", filepath.Dir(to.Mem))
}

func running(err error) error {
	return mvm.Errorf(mvm.ErrConflict, "the VM runs: %w", err).WithHint("pause it first")
}

// canSnapshot refuses what Firecracker would write and then not load, and a VM that
// runs: there the attempt would cut the connections to its vsock.
func (m *machine) canSnapshot(ctx context.Context, diff bool) error {
	if err := m.servesDisks("snapshot", "what "+diskServer+" has in its memory would be missing"); err != nil {
		return err
	}
	info, err := m.api.Info(ctx)
	if err != nil {
		return err
	}
	cfg, err := m.api.Config(ctx)
	switch {
	case err != nil:
		return err
	case info.State != "Paused":
		return running(errors.New("a snapshot is of one moment"))
	case diff && !cfg.Machine.TrackDirty:
		return mvm.Errorf(mvm.ErrUnsupported, "firecracker was not told to keep track of what changes in the VM").
			WithHint("take a full snapshot")
	case cfg.Machine.HugePages == "2M":
		return unsupported("a snapshot of a VM on huge pages", "it cannot load the memory from a file").
			WithHint("create the VM without huge pages")
	}
	return m.mayWrite(cfg.Machine.MemMiB)
}

// mayWrite sees whether the VMM's limit of a file's size leaves room for the memory:
// writing beyond it would end the VMM by SIGXFSZ.
func (m *machine) mayWrite(memMiB int) error {
	limit, err := fileLimit(m.handle.VMM.PID)
	if need := uint64(memMiB) << 20; err == nil && limit < need {
		return unsupported("a snapshot", fmt.Sprintf("its memory of %d MiB is more than the %d MiB that the VMM may write to a file", memMiB, limit>>20)).
			WithHint("start the VM with a larger limit")
	}
	return nil
}

// stage are directories of our own for Firecracker to write to. It opens its files
// one after the other, and makes those that are missing: a snapshot that nobody waits
// for any more would appear later. In a directory that was removed it cannot.
type stage struct {
	dirs       []string
	state, mem staged
}

// staged is a file in a stage.
type staged struct{ path, seen string } // on the host, and to the VMM

func (m *machine) newStage(to vmm.SnapshotFiles) (s *stage, err error) {
	s = &stage{}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	if s.state, err = m.stageFile(s, to.State); err != nil {
		return nil, err
	}
	if s.mem, err = m.stageFile(s, to.Mem); err != nil {
		return nil, err
	}
	return s, nil
}

// stageFile makes an empty file in a directory of its own, which only the VMM's user
// may read: Firecracker would let the umask decide. It is beside where the file is to
// be, or where a jailed VMM can reach it.
func (m *machine) stageFile(s *stage, final string) (f staged, err error) {
	parent, jail := filepath.Dir(final), m.handle.Jail
	if jail != nil {
		parent = filepath.Join(m.handle.Dir, jailDir, jailStage)
	}
	dir, err := os.MkdirTemp(parent, ".snapshot-*")
	if err != nil {
		return f, err
	}
	s.dirs = append(s.dirs, dir)
	f.path = filepath.Join(dir, filepath.Base(final))
	f.seen = f.path
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return f, err
	}
	if jail != nil {
		f.seen = filepath.Join("/", jailStage, filepath.Base(dir), filepath.Base(final))
		err = errors.Join(os.Chmod(dir, 0o711), file.Chown(jail.UID, jail.GID)) //nolint:gosec // the VM's user has to pass
	}
	return f, errors.Join(err, file.Close())
}

// keep gives the files their names, unless those are taken meanwhile.
func (s *stage) keep(ctx context.Context, to vmm.SnapshotFiles) error {
	if err := place(ctx, s.mem.path, to.Mem); err != nil {
		return err
	}
	err := place(ctx, s.state.path, to.State)
	if err == nil {
		err = errors.Join(fsx.SyncDir(filepath.Dir(to.State)), fsx.SyncDir(filepath.Dir(to.Mem)))
		if err != nil {
			_ = os.Remove(to.State)
		}
	}
	if err != nil {
		_ = os.Remove(to.Mem)
	}
	return err
}

// place moves a file, and replaces none. It is ours then.
func place(ctx context.Context, from, to string) error {
	// The VMM's user, whose file it was, may have changed its mode.
	if err := errors.Join(os.Chown(from, os.Geteuid(), os.Getegid()), os.Chmod(from, 0o600)); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system that cannot promise that
		err = os.Link(from, to)
	}
	if errors.Is(err, unix.EXDEV) {
		if err = disk.Clone(ctx, from, to); err == nil {
			err = os.Chmod(to, 0o600)
		}
	}
	if errors.Is(err, os.ErrExist) {
		return mvm.Errorf(mvm.ErrExists, "%s exists", to).WithHint("remove it, or give another name")
	}
	return err
}

func (s *stage) remove() {
	for _, dir := range s.dirs {
		_ = os.RemoveAll(dir)
	}
}
