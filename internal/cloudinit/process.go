package cloudinit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
)

// Command is the first argument of a server's process; a program that sees it calls
// Main with those that follow.
const Command = "__nocloud"

// Token marks the process that serves a VM: it stands in its command line, and in
// no other.
func Token(vmID string) string { return "mvm-nocloud-" + vmID }

// Server is a server to start. It hands the documents in Documents to Peer.
type Server struct {
	VMID      string
	Exe       string         // the program that becomes the server
	Documents string         // directory, see Documents.Write
	Listen    netip.AddrPort // on the gateway
	Peer      netip.Addr     // the guest
	Ended     string         // file that appears when the VM has ended, and ends the server too
}

const (
	listenFD = 3
	reportFD = 4
)

// Start starts the server in a process of its own, which outlives the caller: until
// its documents were fetched, the VM has ended, or its time limit is over. On error
// no process is left.
func (s Server) Start(ctx context.Context) (proc.Identity, error) {
	listener, err := listen(ctx, s.Listen, false)
	if err != nil {
		return proc.Identity{}, err
	}
	defer func() { _ = listener.Close() }()
	id, err := proc.StartReady(ctx, proc.Spec{
		Path: s.Exe, Args: []string{Command, Token(s.VMID), s.Documents, s.Ended, s.Peer.String()}, Dir: "/", ExtraFiles: []*os.File{listener},
	})
	if err != nil && ctx.Err() == nil {
		err = mvm.Errorf(mvm.ErrUnavailable, "the NoCloud server did not start: %w", err).WithHint("try again, or use --cloud-init-mode inject")
	}
	return id, err
}

// StopServer ends whatever serves a VM; nothing doing so is fine.
func StopServer(ctx context.Context, vmID string) error {
	ids, err := proc.FindByArg(Token(vmID))
	errs := []error{err}
	for _, id := range ids {
		errs = append(errs, proc.Kill(ctx, id, 0))
	}
	return errors.Join(errs...)
}

// PortFree says whether a server could listen there, as mvm.ErrExists if not. The
// address need not be there yet.
func PortFree(ctx context.Context, addr netip.AddrPort) error {
	f, err := listen(ctx, addr, true)
	if err != nil {
		return err
	}
	return f.Close()
}

func listen(ctx context.Context, addr netip.AddrPort, anywhere bool) (*os.File, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if !anywhere {
			return nil
		}
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) }), err)
	}}
	l, err := lc.Listen(ctx, "tcp4", addr.String())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, mvm.Errorf(mvm.ErrExists, "the NoCloud port %d is used by another program on this host", addr.Port()).
			WithHint("choose another with --nocloud-net-port, or leave it out to get a free one")
	case err != nil:
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot listen on %s for cloud-init: %w", addr, err).WithHint("see 'mvm network inspect' whether the network is up")
	}
	defer func() { _ = l.Close() }()
	return l.(*net.TCPListener).File()
}

// Main is the server's process. args are the token, which only marks it, the
// documents' directory, the file that tells of the VM's end, and the guest's
// address. It returns the exit status of the process.
func Main(args []string) int {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(25)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	report := os.NewFile(reportFD, "report")
	if len(args) != 4 || report == nil {
		return 2
	}
	syscall.CloseOnExec(listenFD)
	syscall.CloseOnExec(reportFD)
	proc.CloseInherited(reportFD)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l, docs, peer, err := prepare(args[1], args[2], args[3], cancel)
	if err != nil {
		proc.NotReady(report, err)
		return 1
	}
	proc.Ready(report) // who started us may have died: then its journal ends us
	if err := serve(ctx, l, docs, peer, serverLimits); err != nil {
		return 1
	}
	return 0
}

// prepare reads and opens what needs rights, and gives these up: the rest of the
// process's life is talking to a guest.
func prepare(dir, ended, guest string, end func()) (net.Listener, Documents, netip.Addr, error) {
	peer, err := netip.ParseAddr(guest)
	if err != nil {
		return nil, nil, peer, err
	}
	l, err := net.FileListener(os.NewFile(listenFD, "listener"))
	if err != nil {
		return nil, nil, peer, err
	}
	docs, err := ReadDocuments(dir)
	if err != nil {
		return nil, nil, peer, err
	}
	if err := watch(ended, end); err != nil {
		return nil, nil, peer, fmt.Errorf("watch for the end of the VM: %w", err)
	}
	return l, docs, peer, dropRights()
}

// nobody has no files and no processes of interest.
const nobody = 65534

func dropRights() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)} {
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a container without such a user
			return fmt.Errorf("give up root's rights: %w", err)
		}
	}
	return nil
}

// watch calls f when a file appears, or its directory is removed.
func watch(file string, f func()) error {
	return fsx.WatchDir(filepath.Dir(file), func(name string) {
		if name == "" || name == filepath.Base(file) {
			f()
		}
	})
}
