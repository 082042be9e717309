package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Names of the FIFOs in a VM's directory: the VMM reads the first and writes the
// others.
const (
	consoleIn  = "console.in"
	consoleOut = "console.out"
	stderrOut  = "vmm.err"
)

// fifos are all that are made.
var fifos = []string{consoleIn, consoleOut, stderrOut}

func makeFIFOs(dir string) error {
	for _, name := range fifos {
		if err := makeFIFO(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// makeFIFO makes a FIFO that only we can open, or takes the one that is there.
func makeFIFO(path string) error {
	err := unix.Mkfifo(path, 0o600)
	if errors.Is(err, fs.ErrExist) {
		var st os.FileInfo
		if st, err = os.Lstat(path); err == nil && st.Mode().Type() != fs.ModeNamedPipe {
			err = errors.New("another file is there")
		}
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return nil
}

func openFIFO(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// source is a FIFO that the VMM writes, with who takes what it writes.
type source struct {
	f    *os.File
	take func(p []byte)
	done chan struct{}
}

// pipeSize gives a VMM room for a burst while we are not scheduled. Where it may
// not be had, the default of 64 KiB will do.
const pipeSize = 1 << 20

func openSource(path string, take func(p []byte)) (*source, error) {
	f, err := openFIFO(path)
	if err != nil {
		return nil, err
	}
	s := &source{f: f, take: take, done: make(chan struct{})}
	s.control(func(fd int) { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize) })
	return s, nil
}

// control calls do with the descriptor. File.Fd would make it a blocking one.
func (s *source) control(do func(fd int)) {
	if raw, err := s.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) })
	}
}

const chunkSize = 4096

// relay hands on what the VMM writes, until finish.
func (s *source) relay() {
	defer close(s.done)
	buf := make([]byte, chunkSize)
	for {
		n, err := s.f.Read(buf)
		if n > 0 {
			s.take(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// finish ends relay, once the VMM has ended, and hands on what is left: as much
// as the pipe holds, should somebody else go on to write.
func (s *source) finish() {
	_ = s.f.SetReadDeadline(time.Unix(1, 0))
	<-s.done
	s.control(func(fd int) {
		buf := make([]byte, chunkSize)
		for left := pipeSize; left > 0; {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n <= 0 {
				return // empty
			}
			s.take(buf[:n])
			left -= n
		}
	})
	_ = s.f.Close()
}

// vmmEnds are the VMM's ends of the FIFOs. Each is opened for both directions, so
// that the VMM itself keeps the FIFO alive: it gets neither an end of file nor a
// broken pipe when the supervisor dies.
type vmmEnds struct{ stdin, stdout, stderr *os.File }

func openVMMEnds(dir string) (e vmmEnds, err error) {
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	// Its stdin is blocking, as programs expect; os opens FIFOs for its poller.
	if e.stdin, err = os.OpenFile(filepath.Join(dir, consoleIn), os.O_RDWR, 0); err != nil {
		return e, err
	}
	if err = unix.SetNonblock(int(e.stdin.Fd()), false); err != nil {
		return e, err
	}
	if e.stdout, err = openFIFO(filepath.Join(dir, consoleOut)); err != nil {
		return e, err
	}
	e.stderr, err = openFIFO(filepath.Join(dir, stderrOut))
	return e, err
}

// setNonblock makes what the VMM writes to non-blocking. The flag belongs to the
// open file, which the VMM shares, and starting a process may have cleared it. A
// VMM that writes to a full FIFO would stand still when nobody reads any more.
func (e vmmEnds) setNonblock() error {
	return errors.Join(unix.SetNonblock(int(e.stdout.Fd()), true), unix.SetNonblock(int(e.stderr.Fd()), true))
}

func (e vmmEnds) close() {
	for _, f := range []*os.File{e.stdin, e.stdout, e.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}
