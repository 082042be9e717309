package fsx

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// WatchDir calls f for each file that comes into a directory, made or renamed there,
// with its name, and with "" when names were lost or the directory is gone, which is
// the last call. It goes on until then, on a goroutine of its own.
func WatchDir(dir string, f func(name string)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	in := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF|unix.IN_ONLYDIR); err != nil {
		return errors.Join(err, in.Close())
	}
	go func() {
		defer func() { _ = in.Close() }()
		buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
		for {
			n, err := in.Read(buf)
			if err != nil {
				f("")
				return
			}
			if gone := tell(buf[:n], f); gone {
				return
			}
		}
	}()
	return nil
}

// tell calls f for inotify(7) events, and says whether the directory is gone.
func tell(events []byte, f func(name string)) (gone bool) {
	const mask, length = 4, 12 // offsets in struct inotify_event, behind which the name is
	for len(events) >= unix.SizeofInotifyEvent {
		what, n := binary.NativeEndian.Uint32(events[mask:]), int(binary.NativeEndian.Uint32(events[length:]))
		events = events[unix.SizeofInotifyEvent:]
		if n > len(events) {
			n = len(events)
			what |= unix.IN_Q_OVERFLOW
		}
		switch {
		case what&(unix.IN_DELETE_SELF|unix.IN_IGNORED) != 0:
			f("")
			return true
		case what&unix.IN_Q_OVERFLOW != 0:
			f("")
		default:
			f(strings.TrimRight(string(events[:n]), "\x00"))
		}
		events = events[n:]
	}
	return false
}
