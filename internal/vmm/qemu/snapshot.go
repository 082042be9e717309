package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Snapshot implements vmm.Snapshotter. QEMU writes memory, devices and vCPUs as one
// migration stream into the memory file, which it is handed open: it has neither
// to start a program nor to know a name. The state file is ours.
func (m *machine) Snapshot(ctx context.Context, to vmm.SnapshotFiles) error {
	if err := checkSnapshot(to); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := m.prepareSnapshot(ctx)
	if err != nil {
		return m.gone(ctx, err)
	}
	files, err := createSnapshot(to)
	if err != nil {
		return err
	}
	if err = m.write(ctx, files.mem); err == nil {
		err = files.finish(ctx, s)
	}
	if err != nil {
		return m.gone(ctx, errors.Join(files.named(ctx, err), files.remove()))
	}
	return nil
}

func checkSnapshot(to vmm.SnapshotFiles) error {
	if to.Diff {
		return unsupported("diff", "its snapshots are always full ones").WithHint("take a full snapshot, or use --hypervisor firecracker")
	}
	return to.Check()
}

// prepareSnapshot looks at what will be written, and at whether it can be.
func (m *machine) prepareSnapshot(ctx context.Context) (savedState, error) {
	s := savedState{Written: time.Now().UTC()}
	f := m.extra().Facts
	if f == nil {
		return s, unsupported("a snapshot of this VM", "another version of mvm started it").WithHint("stop the VM and start it again")
	}
	s.facts = *f
	if s.Balloon {
		s.BalloonMiB = m.balloonTarget()
	}
	err := m.session(ctx, "snapshot", func(ctx context.Context, q *QMP) error {
		s.QEMU = q.Version()
		if err := mayWrite(ctx, q); err != nil {
			return err
		}
		disks, err := disksOf(ctx, q)
		if err != nil {
			return err
		}
		for _, d := range disks {
			s.Disks = append(s.Disks, savedDisk{ID: d.id, Port: d.port, Bytes: d.bytes, ReadOnly: d.readOnly})
		}
		return nil
	})
	return s, err
}

// mayWrite sees that the vCPUs are paused and nobody else writes them.
func mayWrite(ctx context.Context, q *QMP) error {
	migration, err := migrationOf(ctx, q)
	if err != nil {
		return err
	}
	if migration.underWay() {
		return mvm.Errorf(mvm.ErrBusy, "another snapshot of it is being written").WithHint("wait for its end, or resume the VM, which ends it")
	}
	status, err := statusOf(ctx, q)
	if err != nil {
		return err
	}
	if status == "postmigrate" {
		if status, err = leavePostmigrate(ctx, q); err != nil {
			return err
		}
	}
	switch status {
	case "paused":
		return nil
	case "running":
		return mvm.Errorf(mvm.ErrConflict, "its vCPUs run").WithHint("pause it first: 'mvm vm pause'")
	}
	return mvm.Errorf(mvm.ErrConflict, "QEMU says that it is %q", status).WithHint("resume it and pause it: 'mvm vm resume', 'mvm vm pause'")
}

// leavePostmigrate makes a VM that was written, and has been paused since, ready to
// be written again. QEMU (7.2, as later ones) refuses a second migration in that
// state and has no way out of it but to run: so its vCPUs do, for as long as it takes
// to read the next command. Disks are copied after the memory, and agree with it all
// the same.
func leavePostmigrate(ctx context.Context, q *QMP) (string, error) {
	for _, command := range []string{"cont", "stop"} {
		if err := q.Execute(ctx, command, nil, nil); err != nil {
			return "", err
		}
	}
	return statusOf(ctx, q)
}

// migration is what query-migrate says (MigrationInfo in qapi/migration.json).
type migration struct {
	Status string `json:"status"`
	Desc   string `json:"error-desc"`
}

func migrationOf(ctx context.Context, q *QMP) (migration, error) {
	var m migration
	err := q.Execute(ctx, "query-migrate", nil, &m)
	return m, err
}

func (m migration) underWay() bool {
	return !slices.Contains([]string{"", "none", "completed", "failed", "cancelled"}, m.Status)
}

func statusOf(ctx context.Context, q *QMP) (string, error) {
	var info struct {
		Status string `json:"status"`
	}
	err := q.Execute(ctx, "query-status", nil, &info)
	return info.Status, err
}

// write has QEMU write the VM into a file. When it returns, QEMU has let go of it.
func (m *machine) write(ctx context.Context, mem *os.File) error {
	err := m.session(ctx, "migrate", func(ctx context.Context, q *QMP) error {
		unbounded := map[string]int64{"max-bandwidth": math.MaxInt64}
		if err := q.Execute(ctx, "migrate-set-parameters", unbounded, nil); err != nil {
			return err
		}
		if err := q.PassFile(ctx, "mem", mem); err != nil {
			return err
		}
		return q.Execute(ctx, "migrate", map[string]string{"uri": "fd:mem"}, nil)
	})
	var end migration
	if err == nil {
		end, err = m.untilWritten(ctx)
	}
	if err != nil { // it may write all the same
		return errors.Join(err, m.cancelWrite())
	}
	if end.Status == "completed" {
		return nil
	}
	why := end.Desc
	if why == "" {
		why = "see the VM's log"
	}
	return mvm.Errorf(mvm.ErrUnavailable, "QEMU could not write it (%s): %s", end.Status, why).WithHint("see %s", filepath.Join(m.handle.Dir, "*.log"))
}

// Looks at how far QEMU is with writing or reading a VM. Each takes it a
// millisecond.
const (
	lookFirst = 5 * time.Millisecond
	lookMost  = 250 * time.Millisecond
)

func (m *machine) untilWritten(ctx context.Context) (migration, error) {
	for pause := lookFirst; ; pause = min(pause*2, lookMost) {
		var now migration
		err := m.execute(ctx, "query-migrate", nil, &now)
		if err != nil || !now.underWay() {
			return now, err
		}
		select {
		case <-ctx.Done():
			return now, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// cancelWrite ends a migration, whatever became of the caller's context.
func (m *machine) cancelWrite() error {
	ctx, cancel := context.WithTimeout(context.Background(), qmpLimit)
	defer cancel()
	err := m.session(ctx, "migrate_cancel", endMigration)
	if err != nil && errors.Is(m.gone(ctx, err), vmm.ErrGone) {
		return nil
	}
	return err
}

// endMigration gives up what is being written, and returns when QEMU does not
// write any more.
func endMigration(ctx context.Context, q *QMP) error {
	for asked := false; ; {
		now, err := migrationOf(ctx, q)
		if err != nil || !now.underWay() {
			return err
		}
		if !asked {
			if err := q.Execute(ctx, "migrate_cancel", nil, nil); err != nil {
				return err
			}
			asked = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookFirst):
		}
	}
}

// snapshotFiles are the files of a snapshot while they are written.
type snapshotFiles struct{ state, mem *os.File }

// createSnapshot makes both files, or none.
func createSnapshot(to vmm.SnapshotFiles) (*snapshotFiles, error) {
	mem, err := createFile(to.Mem)
	if err != nil {
		return nil, err
	}
	state, err := createFile(to.State)
	if err != nil {
		return nil, errors.Join(err, (&snapshotFiles{mem: mem}).remove())
	}
	return &snapshotFiles{state, mem}, nil
}

func createFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, mvm.Errorf(mvm.ErrExists, "%s exists", path).WithHint("remove it, or give another name")
	case err != nil:
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot make a file of the snapshot: %w", err).WithHint("see whether the directory can be written to")
	}
	return f, nil
}

// finish measures the memory, writes the state, and has both on the disk.
func (s *snapshotFiles) finish(ctx context.Context, state savedState) error {
	fi, err := s.mem.Stat()
	if err != nil {
		return err
	}
	state.MemBytes = fi.Size()
	if state.MemSum, err = sumOf(ctx, s.mem); err != nil {
		return err
	}
	data, err := state.encode()
	if err != nil {
		return err
	}
	if _, err := s.state.Write(data); err != nil {
		return err
	}
	for _, f := range []*os.File{s.mem, s.state} {
		if err := errors.Join(f.Sync(), f.Close(), fsx.SyncDir(filepath.Dir(f.Name()))); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// named says of an error that it was for want of space, where it was: QEMU tells no
// reason, but who writes on finds it.
func (s *snapshotFiles) named(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	full := []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG}
	isFull := func(err error) bool {
		return slices.ContainsFunc(full, func(e error) bool { return errors.Is(err, e) })
	}
	why := err
	if end, seekErr := s.mem.Seek(0, 2); !isFull(err) && seekErr == nil {
		if _, probe := s.mem.WriteAt(make([]byte, 64<<10), end); isFull(probe) {
			why = probe
		}
	}
	if isFull(why) {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot write the snapshot: %w", errors.Unwrap(fmt.Errorf("%w", why))).
			WithHint("make room on the disk of %s and of %s, or write it elsewhere", filepath.Dir(s.mem.Name()), filepath.Dir(s.state.Name()))
	}
	return err
}

// remove removes what was made.
func (s *snapshotFiles) remove() error {
	var errs []error
	for _, f := range []*os.File{s.state, s.mem} {
		if f == nil {
			continue
		}
		_ = f.Close()
		if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
