// Package nettest is for tests of networking: throw-away network namespaces
// with an outside world, a fake of network.Kernel, and the suite that the fake
// and the real one pass alike. It must not be imported by what is not a test.
//
// A goroutine started from inside a namespace runs outside again, for it lands
// on another thread; so does everything that it starts. A socket stays where it
// was made, whoever uses it, and a child process where it was started from.
package nettest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/run"
)

// Namespace is a network namespace with one thread in it. It goes away with its
// last user: the thread, child processes, sockets.
type Namespace struct {
	t     testing.TB
	enter func() error // brings the thread into the namespace
	work  chan func()
	done  chan struct{}
	file  *os.File // refers to the namespace
	once  sync.Once
}

// NewNamespace makes a network namespace with its loopback interface up, and
// closes it when the test ends. It skips the test where that is not allowed.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root to make network namespaces")
	}
	return start(t, func() error {
		return errors.Join(unix.Unshare(unix.CLONE_NEWNET), upLoopback(), forwardNothing())
	})
}

// Thread returns the same namespace with a thread of its own, so that two calls
// of Do can run at once, as two processes would.
func (ns *Namespace) Thread() *Namespace {
	ns.t.Helper()
	return start(ns.t, func() error { return unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET) })
}

func start(t testing.TB, enter func() error) *Namespace {
	t.Helper()
	ns := &Namespace{t: t, enter: enter, work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go ns.serve(ready)
	if err := <-ready; err != nil {
		t.Fatalf("cannot enter a network namespace: %v", err)
	}
	t.Cleanup(ns.Close)
	return ns
}

// serve is the thread in the namespace. It never unlocks its thread, so the
// runtime ends it with the goroutine.
func (ns *Namespace) serve(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The runtime cannot end the main thread: leave it where it is, held
		// until another one has been found.
		found := make(chan error)
		go ns.serve(found)
		err := <-found
		runtime.UnlockOSThread()
		ready <- err
		return
	}
	defer close(ns.done)
	err := ns.enter()
	if err == nil {
		ns.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	}
	ready <- err
	if err != nil {
		return
	}
	for fn := range ns.work {
		fn()
	}
}

// forwardNothing makes the namespace what a host is before anything was set up.
// A new one takes over what the first namespace of the machine has set (the
// kernel's devconf_inherit_init_net), so it forwards where the machine does.
func forwardNothing() error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0\n"), 0)
}

func upLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq("lo")
	if err == nil {
		ifr.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
	}
	return errors.Join(err, unix.Close(s))
}

// Close ends the namespace's thread. Closing twice is fine.
func (ns *Namespace) Close() {
	ns.once.Do(func() {
		close(ns.work)
		<-ns.done
		_ = ns.file.Close()
	})
}

// Do runs fn on a thread in the namespace and waits for it. A child process
// that fn starts (cmd.Start, cmd.Run) lives in the namespace. In fn, do not call
// t.Fatal or start goroutines that expect to be in the namespace, and do not
// call Do of the same namespace.
func (ns *Namespace) Do(fn func()) {
	finished := make(chan any)
	ns.work <- func() {
		defer func() { finished <- recover() }()
		fn()
	}
	if p := <-finished; p != nil {
		panic(p) // in the caller's goroutine, where the test can report it
	}
}

// Netns runs fn on a thread in a network namespace of its own.
func Netns(t testing.TB, fn func()) {
	t.Helper()
	NewNamespace(t).Do(fn)
}

// Path returns a path that refers to the namespace for this process, its
// threads and what root starts, as long as the namespace is not closed.
func (ns *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// Run runs a tool in the namespace and returns what it printed. The test fails
// with the tool's own words if it does not succeed, and is skipped where the
// tool is not installed.
func (ns *Namespace) Run(name string, args ...string) string {
	ns.t.Helper()
	var res run.Result
	var err error
	ns.Do(func() { res, err = (&run.Host{}).Run(context.Background(), run.Cmd{Name: name, Args: args}) })
	var exit *run.ExitError
	switch {
	case errors.As(err, &exit):
		ns.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, exit.Stderr)
	case err != nil:
		ns.t.Skipf("needs %s: %v", name, err)
	}
	return string(res.Stdout)
}

// Listen opens a listening socket in the namespace; it may be used from any
// goroutine. addr has an IP address, not a name.
func (ns *Namespace) Listen(network, addr string) (net.Listener, error) {
	var l net.Listener
	var err error
	ns.Do(func() { l, err = (&net.ListenConfig{}).Listen(context.Background(), network, addr) })
	return l, err
}

// Dial connects from the namespace; the connection may be used from any
// goroutine. addr has an IP address, not a name.
func (ns *Namespace) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	var err error
	ns.Do(func() { c, err = (&net.Dialer{}).DialContext(ctx, network, addr) })
	return c, err
}

// Join lays a cable (a veth pair) between two namespaces, with both ends up and
// with the addresses given, which may be invalid for none.
func Join(a *Namespace, aName string, aAddr netip.Prefix, b *Namespace, bName string, bAddr netip.Prefix) {
	a.t.Helper()
	a.Run("ip", "link", "add", "name", aName, "type", "veth", "peer", "name", bName, "netns", b.Path())
	for _, end := range []struct {
		ns   *Namespace
		name string
		addr netip.Prefix
	}{{a, aName, aAddr}, {b, bName, bAddr}} {
		if end.addr.IsValid() {
			end.ns.Run("ip", "address", "add", end.addr.String(), "dev", end.name)
		}
		end.ns.Run("ip", "link", "set", end.name, "up")
	}
}

// Outside makes a namespace that stands for the internet: the host reaches it
// by its interface 'uplink' (198.51.100.1/24) and a default route, and it has
// no route back but to the host's own address. It returns the namespace; its
// address is OutsideAddr.
func Outside(t testing.TB, host *Namespace) *Namespace {
	t.Helper()
	out := NewNamespace(t)
	Join(host, Uplink, netip.PrefixFrom(HostAddr, 24), out, "eth0", netip.PrefixFrom(OutsideAddr, 24))
	host.Run("ip", "route", "add", "default", "via", OutsideAddr.String())
	return out
}

// Uplink is the host's interface to Outside.
const Uplink = "uplink"

// HostAddr and OutsideAddr are the two ends of the cable to Outside, in TEST-NET-2
// (RFC 5737).
var (
	HostAddr    = netip.MustParseAddr("198.51.100.1")
	OutsideAddr = netip.MustParseAddr("198.51.100.2")
)

// Guest makes a namespace that stands for a VM: its eth0 is on the network's
// bridge in the host's namespace, has the address, and the gateway as default
// route. port names the host's end.
func Guest(t testing.TB, host *Namespace, port string, s network.Spec, addr netip.Addr) *Namespace {
	t.Helper()
	guest := NewNamespace(t)
	Join(host, port, netip.Prefix{}, guest, "eth0", netip.PrefixFrom(addr, s.Subnet.Bits()))
	host.Run("ip", "link", "set", port, "master", s.Bridge)
	guest.Run("ip", "route", "add", "default", "via", s.Gateway.String())
	return guest
}

// ServePeer listens for TCP in the namespace and tells everyone who connects
// the address that they come from. It returns the address to dial, and ends
// with the test.
func (ns *Namespace) ServePeer(addr string) string {
	ns.t.Helper()
	l, err := ns.Listen("tcp4", addr)
	if err != nil {
		ns.t.Fatalf("listen on %s: %v", addr, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = c.Write([]byte(host))
			_ = c.Close()
		}
	})
	ns.t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

// RunAnyway is Run for a tool that may fail, whose output counts all the same.
func (ns *Namespace) RunAnyway(name string, args ...string) string {
	ns.t.Helper()
	var b strings.Builder
	var err error
	ns.Do(func() { _, err = (&run.Host{}).Run(context.Background(), run.Cmd{Name: name, Args: args, Stdout: &b}) })
	var exit *run.ExitError
	if err != nil && !errors.As(err, &exit) {
		ns.t.Skipf("needs %s: %v", name, err)
	}
	return b.String()
}

// Restore loads rules as iptables-restore reads them.
func (ns *Namespace) Restore(rules string) {
	ns.t.Helper()
	var err error
	ns.Do(func() {
		_, err = (&run.Host{}).Run(context.Background(), run.Cmd{Name: "iptables-restore", Args: []string{"-w"}, Stdin: strings.NewReader(rules)})
	})
	if err != nil {
		ns.t.Fatalf("load rules: %v", err)
	}
}
