package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pty is the master side of a pseudo-terminal (pty(7)).
type pty struct {
	master *os.File
	name   string
}

// maxWindow keeps a silly size from a client out of the terminal's structures.
const maxWindow = 10000

func openPTY(cols, rows uint32) (*pty, error) {
	mountPTS()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	p := &pty{master: os.NewFile(uintptr(fd), "/dev/ptmx"), name: fmt.Sprintf("/dev/pts/%d", n)}
	return p, p.resize(cols, rows)
}

func (p *pty) resize(cols, rows uint32) error {
	raw, err := p.master.SyscallConn()
	if err != nil {
		return err
	}
	ws := &unix.Winsize{Col: uint16(min(cols, maxWindow)), Row: uint16(min(rows, maxWindow))}
	var setErr error
	if err := raw.Control(func(fd uintptr) { setErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, ws) }); err != nil {
		return err
	}
	return setErr
}

// slave opens the terminal's other side for a user.
func (p *pty) slave(uid uint32) (*os.File, error) {
	f, err := p.peer()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		_ = f.Chown(int(uid), -1)
		_ = f.Chmod(0o620)
	}
	return f, nil
}

// peer opens the other side as the master knows it. Its name may lead to another devpts
// by now, which an init has mounted over the one that we had; kernels before 4.13 have
// only the name (TIOCGPTPEER, ioctl_tty(2)).
func (p *pty) peer() (*os.File, error) {
	raw, err := p.master.SyscallConn()
	if err != nil {
		return nil, err
	}
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	var fd uintptr
	var no unix.Errno
	if err := raw.Control(func(master uintptr) { fd, _, no = unix.Syscall(unix.SYS_IOCTL, master, unix.TIOCGPTPEER, flags) }); err != nil {
		return nil, err
	}
	if no != 0 {
		return os.OpenFile(p.name, flags, 0)
	}
	return os.NewFile(fd, p.name), nil
}

func (p *pty) close() { _ = p.master.Close() }

// mountPTS gives an image whose init mounts nothing (an OCI image with a shell
// as PID 1) its pseudo-terminals. Where they are there it does nothing.
func mountPTS() {
	if _, err := os.Stat("/dev/pts/ptmx"); err == nil || os.Geteuid() != 0 {
		return
	}
	if os.MkdirAll("/dev/pts", 0o755) == nil {
		_ = unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666")
	}
}
