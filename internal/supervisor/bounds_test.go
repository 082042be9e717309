package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest/mux"
	"github.com/mvmctl/mvm/internal/vmm"
)

// attach attaches a viewer, and reads what it is shown first.
func attach(t *testing.T, s Spec, first string) net.Conn {
	t.Helper()
	eventually(t, "output in the log", contains(s.Console, first))
	var c net.Conn
	eventually(t, "the console's socket", func() bool {
		var err error
		c, err = fsx.DialUnix(t.Context(), s.ConsoleSocket)
		return err == nil
	})
	t.Cleanup(func() { _ = c.Close() })
	got := make([]byte, len(first))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != first {
		t.Fatalf("a viewer is shown %q, %v", got, err)
	}
	return c
}

// What the caller of mvm has open (here not close-on-exec, as shells have it)
// stays open neither in the supervisor nor in the VMM.
func TestNothingIsInherited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	st := spawn(t, spec(t, "echo booted; sleep 60"))
	for who, pid := range map[string]int{"supervisor": st.Supervisor.PID, "VMM": st.VMM.PID} {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range fds {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == path {
				t.Errorf("the %s has the caller's file open, as %s", who, e.Name())
			}
		}
	}
}

// A VMM whose stderr never ends fills no disk.
func TestStderrIsBounded(t *testing.T) {
	s := spec(t, "")
	s.Argv[2] = "exec " + os.Args[0] + " flood 200000 " + Token(s.ID) + " >&2" // it is ended by its token
	spawn(t, s)
	eventually(t, "the end of the flood", contains(s.Log, "last words"))
	var size int64
	for _, f := range []string{s.Log, s.Log + ".1"} {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	if size > 2*maxLog {
		t.Errorf("5 MB of stderr left %d bytes of log", size)
	}
}

// What a VMM writes to a pipe by itself fills no disk, is complete when the VMM has
// ended, and goes where the last run's is.
func TestPipeIsBounded(t *testing.T) {
	for _, lines := range []string{"10", "200000"} {
		s := spec(t, "")
		p := Pipe{FIFO: filepath.Join(s.Dir, "log.pipe"), File: filepath.Join(s.Dir, "log")}
		s.Pipes = []Pipe{p}
		s.Argv[2] = fmt.Sprintf("exec 3<>%s; head -c $((24*%s)) /dev/zero | tr '\\0' x >&3; echo THE END >&3", p.FIFO, lines)
		if err := os.WriteFile(p.File, []byte("of old\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		st := spawn(t, s)
		if _, err := vmm.WaitExit(t.Context(), vmm.Handle{Dir: s.Dir, VMM: st.VMM, Supervisor: st.Supervisor}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(p.File)
		if err != nil || !strings.HasSuffix(string(data), "xTHE END\n") {
			t.Errorf("%s lines: the log has %d bytes, %v, without the end", lines, len(data), err)
		}
		if got, small := strings.HasPrefix(string(data), "of old\nxxx"), lines == "10"; got != small {
			t.Errorf("%s lines: the log has what was there before: %v", lines, got)
		}
		old, _ := os.ReadFile(p.File + ".1")
		if len(data) > maxLog || len(old) > maxLog {
			t.Errorf("%s lines: the logs have %d and %d bytes", lines, len(data), len(old))
		}
		if _, err := os.Lstat(p.FIFO); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the FIFO after the end: %v", err)
		}
	}
}

// A file in the place of a pipe is not taken for one.
func TestPipeThatIsNone(t *testing.T) {
	s := spec(t, "sleep 60")
	s.Pipes = []Pipe{{FIFO: filepath.Join(s.Dir, "log"), File: filepath.Join(s.Dir, "log.txt")}}
	if err := os.WriteFile(s.Pipes[0].FIFO, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if st, err := Spawn(t.Context(), Launcher{Exe: os.Args[0]}, s); err == nil || !strings.Contains(err.Error(), "another file") {
		t.Errorf("Spawn = %+v, %v", st, err)
	}
}

// The log of a VMM is that of its last run: how it ended is read from it.
func TestLogBeginsAnew(t *testing.T) {
	s := spec(t, "exit 3")
	if err := os.WriteFile(s.Log, []byte("of old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	st := spawn(t, s)
	exit, err := vmm.WaitExit(t.Context(), vmm.Handle{Dir: s.Dir, VMM: st.VMM, Supervisor: st.Supervisor})
	if err != nil || exit.Code != 3 || exit.Reason != "" {
		t.Errorf("exit is %+v, %v", exit, err)
	}
}

// Nothing that a VM said is lost by its end, neither for the log nor for viewers.
func TestLastWords(t *testing.T) {
	const many = 100_000
	s := spec(t, fmt.Sprintf(`echo booted; read line; head -c %d /dev/zero | tr '\0' x; echo; echo THE END`, many))
	st := spawn(t, s)
	viewer := attach(t, s, "booted\n")
	if _, err := io.WriteString(viewer, "go\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(viewer)
	if err != nil || strings.Count(string(got), "x") != many || !strings.HasSuffix(string(got), "\nTHE END\n") {
		t.Errorf("the viewer got %d bytes, %v, want all", len(got), err)
	}
	if _, err := vmm.WaitExit(t.Context(), vmm.Handle{Dir: s.Dir, VMM: st.VMM, Supervisor: st.Supervisor}); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(s.Console)
	if err != nil || strings.Count(string(log), "x") != many || !strings.HasSuffix(string(log), "\nTHE END\n") {
		t.Errorf("the log has %d bytes, %v, want all", len(log), err)
	}
}

func TestViewersAreBounded(t *testing.T) {
	s := spec(t, "echo booted; sleep 60")
	spawn(t, s)
	for range maxViewers {
		attach(t, s, "booted\n")
	}
	c, err := fsx.DialUnix(t.Context(), s.ConsoleSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Errorf("one viewer too many gets %q, %v", got, err)
	}
}

// A viewer that reads nothing holds up neither the VMM nor other viewers.
func TestViewerThatSleeps(t *testing.T) {
	s := spec(t, "")
	s.Argv = []string{os.Args[0], "flood", "400000", Token(s.ID)}
	spawn(t, s)
	eventually(t, "the console's socket", func() bool {
		c, err := fsx.DialUnix(t.Context(), s.ConsoleSocket)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err == nil
	})
	eventually(t, "the end of the flood", contains(s.Console, "last words"))
	c, err := fsx.DialUnix(t.Context(), s.ConsoleSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	seen := make([]byte, ringSize/2)
	if _, err := io.ReadFull(c, seen); err != nil {
		t.Errorf("another viewer: %v", err)
	}
}

// When the channel to the guest breaks, the ends of its streams are closed for
// both directions: a caller that never writes holds no place.
func TestMuxStreamsEndWithTheSession(t *testing.T) {
	s, l := serialPort(t)
	sessions := make(chan *yamux.Session, 4)
	go guest(t, l, "", sessions)
	spawn(t, s)
	session := <-sessions
	var c net.Conn
	eventually(t, "a stream", func() bool {
		var err error
		if c, err = fsx.DialUnix(t.Context(), s.MuxSocket); err != nil {
			return false
		}
		_ = mux.WriteConnect(c, 1)
		if _, err = mux.ReadOK(c); err != nil {
			_ = c.Close()
		}
		return err == nil
	})
	defer func() { _ = c.Close() }()
	_ = session.Close()
	if got, err := io.ReadAll(c); len(got) > 0 {
		t.Errorf("read %q, %v", got, err)
	}
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of both directions", func() bool {
		both := false // a socket of which the peer closed one direction has no POLLHUP
		_ = raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd)}}
			_, _ = unix.Poll(p, 0)
			both = p[0].Revents&unix.POLLHUP != 0
		})
		return both
	})
}

// A guest that goes on without its session, and of whose new beginning the host was
// told nothing, is asked anew: the caller who met its silence is answered.
func TestMuxGuestForgetsTheSession(t *testing.T) {
	s, l := serialPort(t)
	gone := make(chan error, 1)
	sessions := make(chan *yamux.Session, 4)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			gone <- err
			return
		}
		_, err = io.CopyN(io.Discard, conn, mux.MaxFrame) // the noise
		text := ""
		if err == nil {
			text, err = bufio.NewReader(io.LimitReader(conn, int64(len("\x00MVM-SYN \n")+16))).ReadString('\n')
		}
		gone <- err
		_, _ = io.WriteString(conn, strings.Replace(text, "SYN", "ACK", 1))
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		guest(t, l, "", sessions)
	}()
	spawn(t, s)
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	eventually(t, "a stream", func() bool {
		c, err := fsx.DialUnix(t.Context(), s.MuxSocket)
		if err != nil {
			return false
		}
		defer func() { _ = c.Close() }()
		_ = mux.WriteConnect(c, 1)
		_, err = mux.ReadOK(c)
		if err == nil && len(sessions) == 0 {
			t.Error("the guest that says nothing said yes")
		}
		return err == nil
	})
}

func TestBoundedLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	l := boundedLog{path: filepath.Join(dir, "log")}
	if err := l.open(); err == nil {
		t.Fatal("a log is opened where there is no directory")
	}
	l.write([]byte("lost")) // is no failure
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	chunk := strings.Repeat("x", maxLog/4)
	for i := range 10 {
		l.write(fmt.Appendf(nil, "%d%s", i, chunk))
	}
	l.close()
	for name, want := range map[string]string{"log": "9", "log.1": "6"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.HasPrefix(string(data), want) || len(data) > maxLog {
			t.Errorf("%s begins with %.1q and has %d bytes, %v, want %s", name, data, len(data), err, want)
		}
	}
	again := boundedLog{path: l.path}
	if err := again.open(); err != nil || again.size != int64(len(chunk)+1) {
		t.Errorf("opened again: %d bytes, %v", again.size, err)
	}
	again.close()
}

// The end of the VMM ends the relay even when somebody else goes on to write.
func TestFinishEnds(t *testing.T) {
	dir := t.TempDir()
	if err := makeFIFOs(dir); err != nil {
		t.Fatal(err)
	}
	got := 0
	s, err := openSource(filepath.Join(dir, consoleOut), func(p []byte) { got += len(p) })
	if err != nil {
		t.Fatal(err)
	}
	w, err := openFIFO(filepath.Join(dir, consoleOut))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			_, _ = unix.Write(int(w.Fd()), make([]byte, chunkSize))
		}
	}()
	go s.relay()
	s.finish()
	cancel()
	<-ended
	if got > 8*pipeSize {
		t.Errorf("%d bytes were taken", got)
	}
}

// What a viewer types and then leaves at once, as a script does, is for the guest.
func TestViewerThatLeavesAtOnce(t *testing.T) {
	s := spec(t, `echo booted; while read line; do echo "heard $line"; done`)
	spawn(t, s)
	eventually(t, "output in the log", contains(s.Console, "booted"))
	for i := range 20 {
		var c net.Conn
		eventually(t, "somebody can attach", func() bool { // the socket has its name before it listens
			var err error
			c, err = fsx.DialUnix(t.Context(), s.ConsoleSocket)
			return err == nil
		})
		_, err := fmt.Fprintf(c, "line %d\n", i)
		if err := errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the guest hears it", contains(s.Console, fmt.Sprintf("heard line %d\n", i)))
	}
}
