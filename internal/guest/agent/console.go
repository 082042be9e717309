package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest/wire"
)

// resizeConsole sets the size of the terminal behind the kernel's console; what
// runs there in the foreground gets SIGWINCH of it.
func resizeConsole(size wire.ConsoleSize) error {
	active := strings.Fields(line("/sys/class/tty/console/active")) // the last is /dev/console
	if len(active) == 0 {
		return errors.New("the kernel has no console")
	}
	return resizeTTY(path.Join("/dev", active[len(active)-1]), size)
}

func resizeTTY(name string, size wire.ConsoleSize) error {
	if size.Cols <= 0 || size.Rows <= 0 || size.Cols > maxWindow || size.Rows > maxWindow {
		return fmt.Errorf("a terminal cannot have %d columns and %d rows", size.Cols, size.Rows)
	}
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ws := &unix.Winsize{Col: uint16(size.Cols), Row: uint16(size.Rows)} //nolint:gosec // checked above
	var setErr error
	if err := raw.Control(func(fd uintptr) { setErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, ws) }); err != nil {
		return err
	}
	return setErr
}
