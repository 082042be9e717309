package firecracker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// lendLate hands a file to a jailed VMM that runs: it is entered in the ledger, lent,
// and mounted in the VMM's mount namespace.
func (m *machine) lendLate(ctx context.Context, h handed) error {
	unlock, err := m.lockLedger(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := readLedger(m.handle.Dir)
	if err != nil {
		return err
	}
	path, t, err := look(h)
	if err != nil {
		return err
	}
	if err := m.allowSize(path); err != nil {
		return err
	}
	if err := m.unbind(h.name); err != nil { // of one that a crash left
		return err
	}
	if t != nil {
		b.Loans = append(b.Loans, *t)
		if err := b.write(m.handle.Dir); err != nil {
			return err
		}
		if err := b.lend(*t); err != nil {
			if errors.Is(err, fsx.ErrNoACL) {
				err = unsupported("disk "+h.name, "its file system cannot let the VM's user read it").WithHint("stop the VM, attach the disk, and start it again")
			}
			return errors.Join(err, m.giveUp(b, h.name))
		}
	}
	if err := m.bind(path, h); err != nil {
		return errors.Join(err, m.giveUp(b, h.name))
	}
	return nil
}

// allowSize raises the VMM's limit of a file's size to that of a disk: a guest that
// wrote beyond the limit would end the VMM by SIGXFSZ.
func (m *machine) allowSize(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	limit, err := fileLimit(m.handle.VMM.PID)
	if !proc.Alive(m.handle.VMM) { // the number may be another process's by now
		return gone(m.handle)
	}
	size := uint64(st.Size()) //nolint:gosec // not negative
	if err != nil || limit >= size {
		return err
	}
	err = unix.Prlimit(m.handle.VMM.PID, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: size}, nil)
	if errors.Is(err, unix.EPERM) { // in a container, root need not have CAP_SYS_RESOURCE
		return unsupported("a disk that is plugged in", fmt.Sprintf("its %d MiB are more than the %d MiB that the VMM may write to a file", size>>20, limit>>20)).
			WithHint("stop the VM, attach the disk, and start it again")
	}
	return err
}

// fileLimit is how large a file a process may make, from /proc/PID/limits: prlimit(2)
// needs a capability even to look.
func fileLimit(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, "Max file size")
		if f := strings.Fields(rest); ok && len(f) == 3 {
			if f[0] == "unlimited" {
				return math.MaxUint64, nil
			}
			return strconv.ParseUint(f[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("/proc/%d/limits cannot be read", pid)
}

// returnEarly takes a file back from a jailed VMM that runs on.
func (m *machine) returnEarly(ctx context.Context, name string) error {
	unlock, err := m.lockLedger(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := readLedger(m.handle.Dir)
	if err != nil {
		return err
	}
	if err := m.unbind(name); err != nil {
		return err
	}
	return m.giveUp(b, name)
}

// giveUp gives back what is lent by a name, and strikes it out.
func (m *machine) giveUp(b ledger, name string) error {
	var errs []error
	for _, t := range b.Loans {
		if t.Name == name {
			errs = append(errs, b.giveBack(t))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	b.Loans = slices.DeleteFunc(b.Loans, func(t loan) bool { return t.Name == name })
	return b.write(m.handle.Dir)
}

func (m *machine) lockLedger(ctx context.Context) (unlock func(), err error) {
	l, err := fsx.LockWait(ctx, filepath.Join(m.handle.Dir, jailDir, ledgerFile+".lock"))
	if err != nil {
		return nil, err
	}
	return l.Unlock, nil
}

// bind mounts a file of the host in the VMM's mount namespace, from where the host's
// files cannot be named: the mount is made here and moved there (mount_setattr(2),
// open_tree and move_mount; Linux 5.12).
func (m *machine) bind(path string, h handed) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
		if h.readOnly {
			attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		}
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	}
	if errors.Is(err, unix.ENOSYS) {
		return unsupported("a disk for a jailed VM that runs", "the host's kernel is older than 5.12").
			WithHint("stop the VM, attach the disk, and start it again")
	}
	if err == nil {
		err = m.inMounts(func() error {
			if err := placeholder("/", "/"+h.name); err != nil {
				return err
			}
			return unix.MoveMount(fd, "", unix.AT_FDCWD, "/"+h.name, unix.MOVE_MOUNT_F_EMPTY_PATH)
		})
	}
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "%s cannot be brought into the jail: %w", path, err).
			WithHint("stop the VM, attach the disk, and start it again")
	}
	return nil
}

// unbind undoes bind; what is not there is fine. The VMM's user may have put anything
// in the place of the name.
func (m *machine) unbind(name string) error {
	return m.inMounts(func() error {
		err := unix.Unmount("/"+name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) { // no mount: one that was only begun
			err = unix.Unlink("/" + name)
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

// inMounts does something in the VMM's mount namespace, whose root directory is then
// the VMM's.
func (m *machine) inMounts(do func() error) error {
	ns, err := os.Open("/proc/" + strconv.Itoa(m.handle.VMM.PID) + "/ns/mnt")
	if err != nil || !proc.Alive(m.handle.VMM) { // the number may be another process's by now
		return fmt.Errorf("the VM %s: %w", m.handle.ID, errors.Join(vmm.ErrGone, err))
	}
	defer func() { _ = ns.Close() }()
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		return do()
	})
}

// onOwnThread does something that changes its thread, which ends with it. It is not
// the first thread: that one cannot end, and is what /proc/self tells of.
func onOwnThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onOwnThread(do) // on another one, as this one is held
			return
		}
		done <- do() // never unlocked
	}()
	return <-done
}
