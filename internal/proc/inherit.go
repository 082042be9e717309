package proc

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// CloseInherited closes the files above a descriptor that were open when mvm was
// started, a lock of a shell script say: they would stay open for as long as the
// VM runs. What this process has opened itself is close-on-exec, as Go opens all
// files, and so cannot have been inherited.
func CloseInherited(above int) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range fds {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= above {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
}
