package supervisor

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest/mux"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// TestMain lets the test binary be the supervisor, as mvm is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		os.Exit(Main(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "flood" {
		flood(os.Args[2])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serve()
		return
	}
	os.Exit(m.Run())
}

// flood is a VMM that writes to its console as one does: what does not fit is
// lost, or tried again, but never waited for. It ends when it is killed.
func flood(lines string) {
	n, _ := strconv.Atoi(lines)
	for range n {
		_, _ = os.Stdout.WriteString("flood flood flood flood\n")
	}
	for {
		_, _ = os.Stdout.WriteString("last words\n")
		time.Sleep(10 * time.Millisecond)
	}
}

// spec is a supervisor's task whose VMM is a shell script.
func spec(t *testing.T, script string) Spec {
	t.Helper()
	dir := t.TempDir()
	id := strings.ReplaceAll(filepath.Base(filepath.Dir(dir))+filepath.Base(dir)+strconv.FormatInt(time.Now().UnixNano(), 36), "/", "")
	s := Spec{ID: id, Dir: dir, Argv: []string{"/bin/sh", "-c", script, Token(id)}, Log: filepath.Join(dir, "vmm.log"),
		Console: filepath.Join(dir, "console.log"), ConsoleSocket: filepath.Join(dir, "console.sock"), PIDFile: filepath.Join(dir, "vmm.pid")}
	t.Cleanup(func() {
		if err := End(context.Background(), id, 0); err != nil {
			t.Error(err)
		}
	})
	return s
}

func spawn(t *testing.T, s Spec) Started {
	t.Helper()
	st, err := Spawn(t.Context(), Launcher{Exe: os.Args[0]}, s)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// eventually polls until what is asked holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

func contains(path, text string) func() bool {
	return func() bool {
		data, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(data), text)
	}
}

func TestConsoleLogAndExit(t *testing.T) {
	s := spec(t, `echo booted; echo why >&2; read line; echo "heard $line"; exit 7`)
	st := spawn(t, s)
	if !proc.Alive(st.VMM) || !proc.Alive(st.Supervisor) {
		t.Fatalf("not both run: %+v", st)
	}
	if pid, err := os.ReadFile(s.PIDFile); err != nil || strings.TrimSpace(string(pid)) != strconv.Itoa(st.VMM.PID) {
		t.Errorf("pid file: %q, %v", pid, err)
	}
	eventually(t, "boot message in the log", contains(s.Console, "booted"))
	viewers := make([]net.Conn, 2)
	for i := range viewers {
		eventually(t, "console socket", func() bool {
			var err error
			viewers[i], err = fsx.DialUnix(t.Context(), s.ConsoleSocket)
			return err == nil
		})
		defer viewers[i].Close()
		got := make([]byte, len("booted\n"))
		if _, err := io.ReadFull(viewers[i], got); err != nil || string(got) != "booted\n" {
			t.Fatalf("a viewer that comes late is shown %q, %v", got, err)
		}
	}
	if _, err := viewers[0].Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	for i, v := range viewers {
		if got, _ := io.ReadAll(v); !strings.Contains(string(got), "heard hello") {
			t.Errorf("viewer %d sees %q", i, got)
		}
	}
	exit, err := vmm.WaitExit(t.Context(), vmm.Handle{Dir: s.Dir, VMM: st.VMM, Supervisor: st.Supervisor})
	if err != nil || exit.Code != 7 || exit.Reason != "why" {
		t.Errorf("exit is %+v, %v; want status 7 and the last line of stderr", exit, err)
	}
	for _, f := range []string{s.ConsoleSocket, s.PIDFile, filepath.Join(s.Dir, consoleIn), filepath.Join(s.Dir, consoleOut)} {
		if _, err := os.Lstat(f); err == nil {
			t.Errorf("left behind: %s", f)
		}
	}
}

func TestSignalledVMM(t *testing.T) {
	s := spec(t, "sleep 60")
	st := spawn(t, s)
	if err := proc.Kill(t.Context(), st.VMM, 0); err != nil {
		t.Fatal(err)
	}
	exit, err := vmm.WaitExit(t.Context(), vmm.Handle{Dir: s.Dir, VMM: st.VMM, Supervisor: st.Supervisor})
	if err != nil || exit.Code != 128+int(syscall.SIGKILL) || exit.Signal != "SIGKILL" {
		t.Errorf("exit is %+v, %v", exit, err)
	}
}

func TestVMMOutlivesItsSupervisor(t *testing.T) {
	s := spec(t, "")
	s.Argv = []string{os.Args[0], "flood", "100", Token(s.ID)}
	st := spawn(t, s)
	eventually(t, "the VMM's output", contains(s.Console, "last words"))
	if err := proc.Kill(t.Context(), st.Supervisor, 0); err != nil {
		t.Fatal(err)
	}
	// It goes on to write, with nobody to read: a reader that comes later finds it
	// alive and its FIFO in use.
	out, err := os.OpenFile(filepath.Join(s.Dir, consoleOut), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.ReadFull(out, make([]byte, 64)); err != nil {
		t.Errorf("the VMM writes no more: %v", err)
	}
	if !proc.Alive(st.VMM) {
		t.Error("the VMM died with its supervisor")
	}
}

func TestFloodIsBounded(t *testing.T) {
	s := spec(t, "")
	s.Argv = []string{os.Args[0], "flood", "2400000", Token(s.ID)}
	spawn(t, s)
	eventually(t, "the end of the flood", contains(s.Console, "last words"))
	var size int64
	for _, f := range []string{s.Console, s.Console + ".1"} {
		if fi, err := os.Stat(f); err == nil {
			size += fi.Size()
		}
	}
	if size == 0 || size > 2*maxLog {
		t.Errorf("60 MB on the console left %d bytes of log", size)
	}
}

func TestSpawnThatFailsLeavesNothing(t *testing.T) {
	s := spec(t, "")
	s.Argv[0] = filepath.Join(s.Dir, "missing")
	_, err := Spawn(t.Context(), Launcher{Exe: os.Args[0]}, s)
	if !errors.Is(err, mvm.ErrUnavailable) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("error: %v", err)
	}
	s = spec(t, "sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Spawn(ctx, Launcher{Exe: os.Args[0]}, s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if ids, err := proc.FindByArg(Token(s.ID)); err != nil || len(ids) > 0 {
		t.Errorf("left behind: %v, %v", ids, err)
	}
}

// A supervisor that is killed before it was heard of leaves nothing of what it has made.
func TestSpawnCancelledLeavesNoSockets(t *testing.T) {
	s := spec(t, "sleep 60")
	s.MuxSocket, s.PIDFile = filepath.Join(s.Dir, "agent.sock"), filepath.Join(s.Dir, "pid")
	exe := filepath.Join(t.TempDir(), "supervisor")
	script := "#!/bin/sh\n: >" + s.MuxSocket + "; : >" + s.PIDFile + "; : >" + s.ConsoleSocket + "; exec sleep 60\n"
	if err := os.WriteFile(exe, []byte(script), 0o700); err != nil { //nolint:gosec // it is to be executed
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := Spawn(ctx, Launcher{Exe: exe}, s)
		ended <- err
	}()
	there := func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	eventually(t, "its sockets", func() bool { return there(s.ConsoleSocket) })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for _, path := range []string{s.ConsoleSocket, s.MuxSocket, s.PIDFile} {
		if there(path) {
			t.Errorf("%s was left behind", path)
		}
	}
}

// serialPort is a VMM with a serial port to its guest, of which we are the other end.
func serialPort(t *testing.T) (Spec, net.Listener) {
	t.Helper()
	s := spec(t, "sleep 60")
	s.MuxDevice, s.MuxSocket = filepath.Join(s.Dir, "port"), filepath.Join(s.Dir, "agent.sock")
	l, err := net.Listen("unix", s.MuxDevice)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return s, l
}

// guest is the other end of the serial port: it answers handshakes, and echoes
// on port 1.
func guest(t *testing.T, l net.Listener, garbage string, sessions chan<- *yamux.Session) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, garbage)
		var line []byte // noise and a SYN
		for b := make([]byte, 1); err == nil && b[0] != '\n'; line = append(line, b[0]) {
			_, err = conn.Read(b)
		}
		_, nonce, found := strings.Cut(strings.TrimSuffix(string(line), "\n"), "\x00MVM-SYN ")
		if err != nil || !found {
			continue
		}
		_, _ = io.WriteString(conn, "\x00MVM-ACK "+nonce+"\n")
		s, err := yamux.Server(&late{conn}, yamux.DefaultConfig())
		if err != nil {
			t.Error(err)
			return
		}
		sessions <- s
		go func() {
			for {
				c, err := s.Accept()
				if err != nil {
					return
				}
				go func() {
					port, err := mux.ReadConnect(c)
					if err == nil && port == 1 {
						_ = mux.WriteOK(c, port)
						_, _ = io.Copy(c, c)
					}
					_ = c.Close()
				}()
			}
		}()
	}
}

// late passes over the handshakes that the host repeated.
type late struct{ net.Conn }

func (l *late) Read(p []byte) (int, error) {
	for {
		n, err := l.Conn.Read(p)
		if err != nil || !strings.HasPrefix(string(p[:n]), "\x00MVM-SYN") {
			return n, err
		}
	}
}

func TestMuxCarriesManyStreamsAndBeginsAnew(t *testing.T) {
	s, l := serialPort(t)
	sessions := make(chan *yamux.Session, 4)
	go guest(t, l, "kernel noise\n\x00MVM-ACK 0000000000000000\n\x00\x00\n", sessions)
	spawn(t, s)
	session := <-sessions
	for round := range 2 {
		for range 20 {
			eventually(t, "an echo", func() bool {
				c, err := fsx.DialUnix(t.Context(), s.MuxSocket)
				if err != nil {
					return false
				}
				defer c.Close()
				_ = mux.WriteConnect(c, 1)
				if _, err := mux.ReadOK(c); err != nil {
					return false
				}
				_, _ = io.WriteString(c, "ping")
				_ = c.(*net.UnixConn).CloseWrite()
				got, err := io.ReadAll(c)
				return err == nil && string(got) == "ping"
			})
		}
		if round == 0 { // the guest is reset
			_ = session.Close()
			session = <-sessions
		}
	}
	c, err := fsx.DialUnix(t.Context(), s.MuxSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = mux.WriteConnect(c, 2)
	if _, err := mux.ReadOK(c); err == nil {
		t.Error("a port on which nothing listens was connected")
	}
}

func TestRelayEndsAndBegins(t *testing.T) {
	s := spec(t, `echo booted; while read line; do echo "heard $line"; done`)
	st := spawn(t, s)
	attach := func() (net.Conn, error) { return fsx.DialUnix(t.Context(), s.ConsoleSocket) }
	var v net.Conn
	eventually(t, "console socket", func() (ok bool) {
		var err error
		v, err = attach()
		return err == nil
	})
	defer v.Close()
	if _, err := io.ReadFull(v, make([]byte, len("booted\n"))); err != nil {
		t.Fatal(err)
	}
	if err := proc.Signal(st.Supervisor, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(v); err != nil {
		t.Errorf("the viewer was not disconnected: %v", err)
	}
	eventually(t, "no more console socket", func() bool { _, err := attach(); return err != nil })
	for range 2 { // the second does nothing
		if err := proc.Signal(st.Supervisor, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
	}
	var again net.Conn
	eventually(t, "console socket again", func() (ok bool) {
		var err error
		again, err = attach()
		return err == nil
	})
	defer again.Close()
	if _, err := io.WriteString(again, "hello\n"); err != nil {
		t.Fatal(err)
	}
	want := "booted\nheard hello\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(again, got); err != nil || string(got) != want {
		t.Errorf("the new viewer is shown %q, %v", got, err)
	}
	if !proc.Alive(st.VMM) {
		t.Error("the VMM ended")
	}
}

// Who hears that a VM runs can attach to its console.
func TestConsoleAtOnce(t *testing.T) {
	for range 10 {
		s := spec(t, "exec sleep 1000")
		spawn(t, s)
		conn, err := fsx.DialUnix(t.Context(), s.ConsoleSocket)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
}
