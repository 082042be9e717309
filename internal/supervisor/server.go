package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Server is a process that serves the VMM over a unix socket, as a disk say, for as
// long as the VMM runs. It listens to the socket before the VMM is started: the VMM
// may connect at once.
type Server struct {
	Name   string   `json:"name"` // for people: "disk vol-…"
	Argv   []string `json:"argv"` // ServerToken(ID) stands in one of the arguments
	Env    []string `json:"env"`
	Socket string   `json:"socket"` // is made, and removed with the VMM's end; inherited as ServerSocketFD
	File   string   `json:"file"`   // what it serves; inherited as ServerFileFD

	ReadOnly bool `json:"read_only"` // how File is opened

	Log string `json:"log"` // the FIFO of one of Spec.Pipes, for what it says; "" is where the VMM's stderr goes

	// UID and GID are another user's, whom socket and process then belong to. Such a
	// process has no network and sees no other processes. 0 leaves it ours.
	UID int `json:"uid,omitempty"`
	GID int `json:"gid,omitempty"`
}

// Descriptors that a server inherits.
const (
	ServerSocketFD = 3
	ServerFileFD   = 4
)

// ServerToken marks a VM's servers, as Token marks its supervisor and its VMM.
func ServerToken(vmID string) string { return "mvm-server-" + vmID }

// serverGrace is how long a server may take to end by itself: it may have something
// to write.
const serverGrace = 3 * time.Second

// EndServers ends the servers of a VM, whose VMM has ended. A VM that has none is fine.
func EndServers(ctx context.Context, vmID string) error {
	ids, err := proc.FindByArg(ServerToken(vmID))
	errs := []error{err}
	for _, id := range ids {
		errs = append(errs, proc.Kill(ctx, id, serverGrace))
	}
	return errors.Join(errs...)
}

func (v *supervised) endServers() error {
	if len(v.spec.Servers) == 0 {
		return nil
	}
	v.ending.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 2*serverGrace)
	defer cancel()
	return EndServers(ctx, v.spec.ID)
}

// endedServer is a server that ended before its VMM did.
type endedServer struct {
	Server
	how string
}

// startServers starts the VMM's servers.
func (v *supervised) startServers() error {
	v.ended = make(chan endedServer, len(v.spec.Servers))
	for i := range v.spec.Servers {
		s := &v.spec.Servers[i]
		if s.Log == "" {
			s.Log = filepath.Join(v.spec.Dir, stderrOut)
		}
		p, err := s.start()
		if err != nil {
			return fmt.Errorf("start the server of %s: %w", s.Name, err)
		}
		go v.watchServer(*s, p)
	}
	return nil
}

// watchServer says in the log that a server has ended by itself: nothing else would
// tell, and the VMM waits for it without end.
func (v *supervised) watchServer(s Server, p *os.Process) {
	state, err := p.Wait()
	if v.ending.Load() {
		return
	}
	how := "the server of " + s.Name + " has ended"
	if err == nil {
		how += " (" + state.String() + ")"
	}
	v.ended <- endedServer{s, how}
	if f, err := openFIFO(s.Log); err == nil {
		_, _ = f.WriteString("mvm: " + how + "; what waits for it goes on when the VM is started anew\n")
		_ = f.Close()
	}
}

// reapLimit is how long it may take until it is known how a server has ended.
const reapLimit = 5 * time.Second

// serverEnded returns the server that a VMM failed for, as it had ended before; or nil.
func (v *supervised) serverEnded(exit vmm.Exit) *endedServer {
	if exit.Code == 0 || exit.Reason != "" || len(v.spec.Servers) == 0 || v.ended == nil {
		return nil
	}
	if alive, err := proc.FindByArg(ServerToken(v.spec.ID)); err != nil || len(alive) >= len(v.spec.Servers) {
		return nil
	}
	select {
	case e := <-v.ended:
		return &e
	case <-time.After(reapLimit):
		return nil
	}
}

// reason is why the server has ended, with the last that it said: programs begin that
// with their name. What it said has to be in its log.
func (e *endedServer) reason(s Spec) string {
	log, program := s.Log, filepath.Base(e.Argv[0])+": "
	for _, p := range s.Pipes {
		if p.FIFO == e.Log {
			log = p.File
		}
	}
	if said := lastLineOf(log, program); said != "" {
		return e.how + ": " + strings.TrimPrefix(said, program)
	}
	return e.how
}

func (s Server) start() (*os.Process, error) {
	out, err := openFIFO(s.Log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	l, err := fsx.ListenUnix(s.Socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }() // the server has its own
	if s.UID != 0 {
		if err := os.Lchown(s.Socket, s.UID, s.GID); err != nil {
			return nil, err
		}
	}
	listening, err := l.(*net.UnixListener).File()
	if err != nil {
		return nil, err
	}
	defer func() { _ = listening.Close() }()
	how := os.O_RDWR
	if s.ReadOnly {
		how = os.O_RDONLY
	}
	file, err := os.OpenFile(s.File, how|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	p, err := startServer(proc.Spec{
		Path: s.Argv[0], Args: s.Argv[1:], Dir: "/", Env: s.Env, Stdout: out, Stderr: out,
		ExtraFiles: []*os.File{listening, file},
		OwnPIDs:    s.UID != 0, OwnNetwork: s.UID != 0, UID: s.UID, GID: s.GID,
	})
	if err == nil { // as with what a VMM writes to: starting it has cleared the flag
		err = unix.SetNonblock(int(out.Fd()), true)
	}
	return p, err
}

// startServer starts a process that can gain no rights (PR_SET_NO_NEW_PRIVS) and has
// of root's only that of opening what others own (capabilities(7)): a child takes that
// over from the thread that starts it, which ends here.
func startServer(s proc.Spec) (p *os.Process, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if c != unix.CAP_DAC_OVERRIDE && s.UID == 0 { // another user gets none in any case
				_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // who is not root has none
			}
		}
		if err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err == nil {
			p, _, err = proc.StartDetached(s)
		}
	}()
	<-done
	return p, err
}
