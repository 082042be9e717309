package proc

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// WaitStatus waits for the end of a process that need not be our child, and
// returns how it ended. known is false where the kernel does not tell: it does
// since Linux 6.15, and only whoever had the process open while it ran
// (PIDFD_INFO_EXIT, include/uapi/linux/pidfd.h).
func WaitStatus(ctx context.Context, id Identity) (status unix.WaitStatus, known bool, err error) {
	fd, err := open(id)
	if errors.Is(err, ErrGone) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := wait(ctx, id, fd); err != nil {
		return 0, false, err
	}
	// The status is there once the parent has reaped the process, which init may
	// take a while to do.
	for range reapTries {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err := unix.IoctlPidfdInfo(fd, &info)
		switch {
		case err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINTR):
			return 0, false, nil // an older kernel
		case err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0:
			return unix.WaitStatus(info.Exit_code), true, nil //nolint:gosec // the kernel's wait status
		}
		pause := unix.Timespec{Nsec: int64(reapPause)}
		_ = unix.Nanosleep(&pause, nil)
	}
	return 0, false, nil
}

// How long the reaping of an ended process is waited for.
const (
	reapTries = 100
	reapPause = 5e6 // ns
)
