package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
)

// stagePrefix marks the directories that images are made in. They stand beside
// the images, so that the last step is one rename.
const stagePrefix = ".build-"

// stage is a directory in which one image is made.
type stage struct {
	dir  string // absolute
	dest string
	lock *fsx.Lock
}

// newStage makes a stage beside dest, and removes those that dead builds left.
// A stage is alive as long as its maker holds the lock on it.
func newStage(ctx context.Context, b builder, dest string) (*stage, error) {
	dest, err := filepath.Abs(dest)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(dest); err == nil {
		return nil, mvm.Errorf(mvm.ErrExists, "%s is there already", dest).WithHint("remove the image first")
	}
	parent := filepath.Dir(dest)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	// Under one lock, so that nobody clears a stage between its making and its locking.
	door, err := fsx.LockWait(ctx, filepath.Join(parent, doorName))
	if err != nil {
		return nil, err
	}
	defer door.Unlock()
	if err := clearStages(ctx, b, parent); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, stagePrefix)
	if err != nil {
		return nil, err
	}
	lock, err := fsx.TryLock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &stage{dir: dir, dest: dest, lock: lock}, nil
}

// Sweep removes what makers of images left in a directory of images when they were
// killed. Those at work are left alone.
func Sweep(ctx context.Context, r run.Runner, dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, stagePrefix+"*"))
	left = slices.DeleteFunc(left, func(name string) bool { return strings.HasSuffix(name, ".lock") })
	if err != nil || len(left) == 0 {
		return err
	}
	door, err := fsx.LockWait(ctx, filepath.Join(dir, doorName))
	if err != nil {
		return err
	}
	defer door.Unlock()
	return clearStages(ctx, newBuilder(r), dir)
}

// doorName is the lock that is held while stages are made and cleared.
const doorName = ".build.lock"

// clearStages removes the stages in parent that nobody holds.
func clearStages(ctx context.Context, b builder, parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), stagePrefix) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		lock, err := fsx.TryLock(filepath.Join(dir, "lock"))
		if errors.Is(err, fsx.ErrLocked) {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		err = b.removeAll(ctx, dir)
		lock.Unlock()
		if err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "cannot remove what an interrupted build left: %w", err).WithHint("remove %s", dir)
		}
	}
	return nil
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// commit makes the stage's directory "out" the destination.
func (s *stage) commit() error {
	if err := fsx.SyncDir(s.path("out")); err != nil {
		return err
	}
	if err := os.Rename(s.path("out"), s.dest); err != nil {
		return err
	}
	return fsx.SyncDir(filepath.Dir(s.dest))
}

// close removes the stage with what is left in it. It is called with a context
// that has not ended: cleaning up is not optional.
func (s *stage) close(ctx context.Context, b builder) {
	_ = b.removeAll(ctx, s.dir) // if not, the next build does
	s.lock.Unlock()
}

// Staged makes the directory dest, or nothing: fill gets a directory to work in, which
// goes in any case, and one in it that becomes dest. need is how many bytes it will
// take, at least.
func Staged(ctx context.Context, r run.Runner, dest string, need int64, fill func(dir, out string) error) error {
	b := newBuilder(r)
	s, err := newStage(ctx, b, dest)
	if err != nil && mvm.HintOf(err) == "" && ctx.Err() == nil {
		err = mvm.Errorf(mvm.ErrUnavailable, "cannot prepare the image: %w", err).WithHint("check that %s can be written", filepath.Dir(dest))
	}
	if err != nil {
		return err
	}
	defer s.close(context.WithoutCancel(ctx), b)
	if err := disk.EnoughSpace(s.dir, need); err != nil {
		return err
	}
	if err := os.Mkdir(s.path("out"), 0o700); err != nil {
		return err
	}
	if err := fill(s.dir, s.path("out")); err != nil {
		return err
	}
	return s.commit()
}
