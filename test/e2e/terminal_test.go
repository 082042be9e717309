package e2e

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pty and what came out of it.
type terminal struct {
	t     *testing.T
	ptmx  *os.File
	tty   *os.File
	bytes chan byte
	seen  strings.Builder
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("skipped: no pty here: %v", err)
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0)
	}
	var tty *os.File
	if err == nil {
		tty, err = os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, ptmx: ptmx, tty: tty, bytes: make(chan byte, 1<<20)}
	go func() {
		defer close(term.bytes)
		buf := make([]byte, 4096)
		for {
			n, err := ptmx.Read(buf)
			for _, b := range buf[:n] {
				term.bytes <- b
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = errors.Join(tty.Close(), ptmx.Close()) })
	return term
}

func (x *terminal) resize(cols, rows uint16) {
	x.t.Helper()
	if err := unix.IoctlSetWinsize(int(x.ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) typing(s string) {
	x.t.Helper()
	if _, err := io.WriteString(x.ptmx, s); err != nil {
		x.t.Fatal(err)
	}
}

// expect reads on until text comes.
func (x *terminal) expect(text string) {
	x.t.Helper()
	limit := time.After(patience)
	for !strings.HasSuffix(x.seen.String(), text) {
		select {
		case b, ok := <-x.bytes:
			if !ok {
				x.t.Fatalf("%q did not come: %q", text, x.seen.String())
			}
			x.seen.WriteByte(b)
		case <-limit:
			x.t.Fatalf("%q did not come within %s: %q", text, patience, x.seen.String())
		}
	}
	x.seen.Reset()
}

// on starts mvm on a terminal of its own.
func (m *machine) on(x *terminal, args ...string) *exec.Cmd {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	m.t.Cleanup(cancel)
	cmd := m.command(ctx, nil, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = x.tty, x.tty, x.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	var err error
	m.ns.Do(func() { err = cmd.Start() })
	if err != nil {
		m.t.Fatal(err)
	}
	return cmd
}
