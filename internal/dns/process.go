package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
)

// Command is the first argument of a server's process; a program that sees it calls
// Main with those that follow.
const Command = "__dns"

// Port is where the servers listen.
const Port = 53

// Token marks the process that serves a network: it stands in its command line, and
// in no other.
func Token(networkID string) string { return "mvm-dns-" + networkID }

// Server is a server to start.
type Server struct {
	NetworkID string
	Exe       string         // the program that becomes the server
	Dir       string         // of its zone; it goes when that does
	Listen    netip.AddrPort // on the gateway
	Device    string         // the network's bridge: nothing that comes another way is heard
}

// The files that a server's process is started with.
const (
	udpFD = 3 + iota
	tcpFD
	dirFD
	reportFD
)

// stateFile holds what runs, in the server's directory.
const stateFile = "server.json"

// state is a server that was started.
type state struct {
	ID     proc.Identity  `json:"id"`
	Listen netip.AddrPort `json:"listen"`
	Device int            `json:"device"` // its index: a bridge that was made anew is another one
}

// Ensure starts the server where it does not run, or runs for a bridge that is gone.
// Its zone has been written. It outlives the caller. Calls for one network must not
// run at once. It says whether one was started.
func (s Server) Ensure(ctx context.Context) (started bool, err error) {
	want := state{Listen: s.Listen}
	if s.Device != "" {
		dev, err := net.InterfaceByName(s.Device)
		if err != nil {
			return false, mvm.Errorf(mvm.ErrNotFound, "the bridge %s is not there: %w", s.Device, err).WithHint("run 'mvm network sync'")
		}
		want.Device = dev.Index
	}
	now, err := readState(s.Dir)
	if want.ID = now.ID; err == nil && now == want && proc.Alive(now.ID) {
		return false, nil
	}
	if err := Stop(ctx, s.NetworkID, s.Dir); err != nil { // also one whose starter died before it wrote that down
		return false, err
	}
	if want.ID, err = s.start(ctx); err != nil {
		return false, err
	}
	data, err := json.Marshal(want)
	if err == nil {
		err = fsx.SwapFile(filepath.Join(s.Dir, stateFile), data, 0o600)
	}
	if err != nil {
		return false, errors.Join(err, Stop(context.WithoutCancel(ctx), s.NetworkID, s.Dir))
	}
	return true, nil
}

func (s Server) start(ctx context.Context) (proc.Identity, error) {
	udp, tcp, err := s.listen(ctx)
	if err != nil {
		return proc.Identity{}, err
	}
	defer func() { _, _ = udp.Close(), tcp.Close() }()
	dir, err := os.Open(s.Dir)
	if err != nil {
		return proc.Identity{}, err
	}
	defer func() { _ = dir.Close() }()
	id, err := proc.StartReady(ctx, proc.Spec{Path: s.Exe, Args: []string{Command, Token(s.NetworkID)}, Dir: "/", ExtraFiles: []*os.File{udp, tcp, dir}})
	if err != nil && ctx.Err() == nil {
		err = mvm.Errorf(mvm.ErrUnavailable, "the DNS server of the network did not start: %w", err).WithHint("try again, or switch it off with 'mvm network dns NETWORK off'")
	}
	return id, err
}

// Running returns the server's process, mvm.ErrNotFound if it is not there.
func Running(dir string) (proc.Identity, error) {
	now, err := readState(dir)
	if err != nil || !proc.Alive(now.ID) {
		return proc.Identity{}, mvm.Errorf(mvm.ErrNotFound, "no DNS server runs")
	}
	return now.ID, nil
}

func readState(dir string) (state, error) {
	var st state
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	return st, err
}

// Stop ends whatever serves a network; nothing doing so is fine.
func Stop(ctx context.Context, networkID, dir string) error {
	var errs []error
	if now, err := readState(dir); err == nil { // else it is found by its token
		errs = append(errs, proc.Kill(ctx, now.ID, 0))
	}
	ids, err := proc.FindByArg(Token(networkID))
	errs = append(errs, err)
	for _, id := range ids {
		errs = append(errs, proc.Kill(ctx, id, 0))
	}
	if err := os.Remove(filepath.Join(dir, stateFile)); !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// PortFree says whether a server could listen there, as mvm.ErrExists if not. The
// address need not be there yet.
func PortFree(ctx context.Context, addr netip.AddrPort) error {
	udp, tcp, err := (Server{Listen: addr}).listen(ctx)
	if err != nil {
		return err
	}
	return errors.Join(udp.Close(), tcp.Close())
}

func (s Server) listen(ctx context.Context) (udp, tcp *os.File, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		set := func(fd uintptr) {
			if s.Device != "" {
				err = unix.BindToDevice(int(fd), s.Device)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
			}
		}
		return errors.Join(c.Control(set), err)
	}}
	fail := func(err error) (*os.File, *os.File, error) {
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, nil, mvm.Errorf(mvm.ErrExists, "another program of this host listens on port %d of %s, where the network's DNS is to be", s.Listen.Port(), s.Listen.Addr()).
				WithHint("have that program listen on its own addresses only, or switch the network's DNS off with 'mvm network dns NETWORK off'")
		}
		return nil, nil, mvm.Errorf(mvm.ErrUnavailable, "cannot listen on %s for DNS: %w", s.Listen, err).WithHint("see 'mvm network inspect' whether the network is up")
	}
	pc, err := lc.ListenPacket(ctx, "udp4", s.Listen.String())
	if err != nil {
		return fail(err)
	}
	defer func() { _ = pc.Close() }()
	at := s.Listen
	if at.Port() == 0 { // any, but the same one
		at = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	l, err := lc.Listen(ctx, "tcp4", at.String())
	if err != nil {
		return fail(err)
	}
	defer func() { _ = l.Close() }()
	if udp, err = pc.(*net.UDPConn).File(); err != nil {
		return fail(err)
	}
	if tcp, err = l.(*net.TCPListener).File(); err != nil {
		_ = udp.Close()
		return fail(err)
	}
	return udp, tcp, nil
}

// Main is the server's process. It returns the exit status of the process.
func Main(args []string, open Opener) int {
	if len(args) < 1 {
		return 2
	}
	report := os.NewFile(reportFD, "report")
	if len(args) == 1 { // root's first step
		if err := becomeNobody(append([]string{Command}, append(args, "nobody")...)); err != nil {
			proc.NotReady(report, err)
			return 1
		}
	}
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(50)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	for fd := udpFD; fd <= reportFD; fd++ {
		syscall.CloseOnExec(fd)
	}
	proc.CloseInherited(reportFD)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, udp, tcp, err := prepare(ctx, cancel, open)
	if err != nil {
		proc.NotReady(report, err)
		return 1
	}
	proc.Ready(report)
	if err := s.serve(ctx, udp, tcp); err != nil {
		return 1
	}
	return 0
}

// dirPath is the server's directory: the way to it may lead through others that it
// must not enter.
var dirPath = fmt.Sprintf("/proc/self/fd/%d", dirFD)

// look is how often the server sees whether its directory is still there.
const look = 2 * time.Second

func prepare(ctx context.Context, end func(), open Opener) (*server, net.PacketConn, net.Listener, error) {
	udp, err := net.FilePacketConn(os.NewFile(udpFD, "udp"))
	if err != nil {
		return nil, nil, nil, err
	}
	tcp, err := net.FileListener(os.NewFile(tcpFD, "tcp"))
	if err != nil {
		return nil, nil, nil, err
	}
	changed := make(chan struct{}, 1)
	err = fsx.WatchDir(dirPath, func(name string) {
		if name == zoneFile || name == "" {
			select {
			case changed <- struct{}{}:
			default: // it is about to be read anyway
			}
		}
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("watch the zone: %w", err)
	}
	z, err := readZone(dirPath)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the zone: %w", err)
	}
	s := newServer(ctx, z, open)
	go s.follow(ctx, dirPath, changed, end)
	return s, udp, tcp, nil
}

// follow reads the zone whenever it has changed, and ends the server when it is gone.
func (s *server) follow(ctx context.Context, dir string, changed <-chan struct{}, end func()) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := os.Stat(filepath.Join(dir, zoneFile)); errors.Is(err, fs.ErrNotExist) {
				end()
				return
			}
		case <-changed:
			if z, err := readZone(dir); err == nil {
				s.use(ctx, z)
			}
		}
	}
}

// nobody has no files and no processes of interest.
const nobody = 65534

// becomeNobody starts this program again as nobody, with the one right that opening
// addresses takes (CAP_NET_ADMIN); the rest of the process's life is talking to
// guests. It returns only where that cannot be: without root there is nothing to
// give up, and a program that nobody may execute goes on as it is.
func becomeNobody(args []string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if st, err := os.Stat("/proc/self/exe"); err != nil || st.Mode()&0o001 == 0 {
		return nil
	}
	runtime.LockOSThread() // these are the thread's, and execve(2) makes them the process's
	for _, call := range [][4]uintptr{
		{unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0},
		{unix.SYS_SETGROUPS, 0, 0, 0},
		{unix.SYS_SETRESGID, nobody, nobody, nobody},
		{unix.SYS_SETRESUID, nobody, nobody, nobody},
	} {
		_, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3])
		if errno == unix.EINVAL || errno == unix.EPERM && call[0] == unix.SYS_SETGROUPS {
			continue // a container without such a user
		}
		if errno != 0 {
			return fmt.Errorf("give up root's rights: %w", errno)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var keep [2]unix.CapUserData
	keep[0].Permitted = 1 << unix.CAP_NET_ADMIN
	keep[0].Effective, keep[0].Inheritable = keep[0].Permitted, keep[0].Permitted
	if err := unix.Capset(&header, &keep[0]); err != nil {
		return fmt.Errorf("give up root's rights: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN, 0, 0); err != nil {
		return fmt.Errorf("keep the right to open addresses: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	argv := append([]string{os.Args[0]}, args...)
	env := []string{"PATH=" + os.Getenv("PATH")}
	if err := syscall.Exec("/proc/self/exe", argv, env); err != nil {
		return fmt.Errorf("start again without root's rights: %w", err)
	}
	return nil
}
