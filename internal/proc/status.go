package proc

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WaitStatus waits for the end of a process that need not be our child, and
// returns how it ended. known is false where nobody tells: a process that has ended
// says so in /proc until its parent reaps it (proc(5), field 52 of stat); later, and
// since Linux 6.15, the kernel does to whoever had the process open while it ran
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
	for range reapTries {
		if code, ok := zombieStatus(id); ok {
			return unix.WaitStatus(code), true, nil
		}
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err := unix.IoctlPidfdInfo(fd, &info)
		switch {
		case err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINTR):
			return 0, false, nil // an older kernel
		case err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0:
			return unix.WaitStatus(info.Exit_code), true, nil //nolint:gosec // the kernel's wait status
		}
		time.Sleep(reapPause) // it is just being reaped
	}
	return 0, false, nil
}

// How long the reaping of an ended process is waited for.
const (
	reapTries = 50
	reapPause = 2 * time.Millisecond
)

// zombieStatus reads how a process ended that was not reaped yet. It has to be
// one that we may look into.
func zombieStatus(id Identity) (uint32, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(id.PID) + "/stat")
	if err != nil {
		return 0, false
	}
	const state, startTime, exitCode = 0, 19, 49 // fields 3, 22 and 52
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) <= exitCode || fields[state] != "Z" || fields[startTime] != strconv.FormatUint(id.StartTime, 10) {
		return 0, false
	}
	code, err := strconv.ParseUint(fields[exitCode], 10, 32)
	return uint32(code), err == nil
}
