package disk

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// enterMounts gives the calling goroutine's thread mounts of its own, with a
// small tmpfs on dir. The thread is never unlocked, so it ends with the
// goroutine and takes the mount with it.
func enterMounts(dir string) error {
	runtime.LockOSThread()
	return errors.Join(
		unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"))
}
