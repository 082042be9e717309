package api

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// ConsoleOperation attaches to the serial consoles of VMs. They are relayed by the
// supervisor of each VM, to any number of viewers at once; each is shown the last
// 64 KiB first.
type ConsoleOperation struct{ core *core }

// ConsoleConnectionInfo is where a VM's console is attached to: a unix stream
// socket that carries the console's bytes in both directions.
type ConsoleConnectionInfo struct {
	VMID       string `json:"vm_id"`
	VMName     string `json:"vm_name"`
	SocketPath string `json:"socket_path"`
}

// ConsoleState says whether a console is relayed, and by which process.
type ConsoleState struct {
	Running    bool   `json:"running"`
	PID        int    `json:"pid"` // 0 when nothing relays it
	SocketPath string `json:"socket_path"`
}

// ConsoleEnd says why a session at a console ended.
type ConsoleEnd string

// The ends of a session at a console.
const (
	ConsoleDetached ConsoleEnd = "detached" // by the keys, or at the end of the input
	ConsoleClosed   ConsoleEnd = "closed"   // by the other side: the VM ended, or Kill
)

// relayLimit is how long the supervisor has to follow a request.
const relayLimit = 5 * time.Second

// GetConnectionInfo returns where the console of a running VM is attached to.
func (o *ConsoleOperation) GetConnectionInfo(ctx context.Context, identifier string) (ConsoleConnectionInfo, error) {
	vm, err := o.find(ctx, identifier)
	if err != nil {
		return ConsoleConnectionInfo{}, err
	}
	info := ConsoleConnectionInfo{VMID: vm.ID, VMName: vm.Name, SocketPath: deref(vm.RelaySocketPath)}
	if vm.Status != mvm.StatusRunning && vm.Status != mvm.StatusPaused {
		return info, mvm.Errorf(mvm.ErrConflict, "it is %s; it has to be running", vm.Status).On("attach to the console of", vm.Name).
			WithHint("start it with 'mvm vm start %s'; what it showed is in 'mvm logs %s'", vm.Name, vm.Name)
	}
	return info, nil
}

// GetState says whether the console of a VM is relayed. A VM that does not run is
// no error.
func (o *ConsoleOperation) GetState(ctx context.Context, identifier string) (ConsoleState, error) {
	vm, err := o.find(ctx, identifier)
	if err != nil {
		return ConsoleState{}, err
	}
	s := ConsoleState{SocketPath: deref(vm.RelaySocketPath)}
	if conn, err := dialConsole(ctx, s.SocketPath); err == nil {
		s.Running = conn.Close() == nil
		if vm.RelayPID != nil {
			s.PID = *vm.RelayPID
		}
	}
	return s, nil
}

// Kill ends the relay of a VM's console: all viewers are disconnected and none can
// attach, until Attach starts it again. The VM and its log go on. It returns
// whether there was a relay to end.
func (o *ConsoleOperation) Kill(ctx context.Context, identifier string) (bool, error) {
	vm, err := o.find(ctx, identifier)
	if err != nil {
		return false, err
	}
	path := deref(vm.RelaySocketPath)
	conn, err := dialConsole(ctx, path)
	if err != nil {
		return false, nil // there is none
	}
	defer func() { _ = conn.Close() }()
	err = o.signal(ctx, vm, unix.SIGUSR1, func() bool {
		c, err := dialConsole(ctx, path)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	return err == nil, mvm.Wrap(err, "end the console relay of", vm.Name)
}

// Attach connects a running VM's console with stdio until the detach keys are
// typed (Ctrl-X, then D), the input or ctx ends, or the other side closes. The
// guest's agent, if there is one, is told the size of the terminal.
func (o *ConsoleOperation) Attach(ctx context.Context, identifier string, stdio StreamIO) (ConsoleEnd, error) {
	const what = "attach to the console of"
	info, err := o.GetConnectionInfo(ctx, identifier)
	if err != nil {
		return "", err
	}
	conn, err := dialConsole(ctx, info.SocketPath)
	if err != nil { // Kill ended it
		vm, findErr := o.find(ctx, info.VMID)
		if findErr != nil {
			return "", findErr
		}
		err = o.signal(ctx, vm, unix.SIGUSR2, func() bool {
			conn, err = dialConsole(ctx, info.SocketPath)
			return err == nil
		})
	}
	if err != nil {
		return "", mvm.Wrap(err, what, info.VMName)
	}
	if stdio.Terminal != nil {
		ended, stop := context.WithCancel(ctx)
		defer stop()
		go o.resize(ended, info.VMID, *stdio.Terminal, stdio.Resize)
	}
	end, err := view(ctx, conn, stdio)
	return end, mvm.Wrap(err, what, info.VMName)
}

// resize tells the guest how large the viewer's terminal is, as long as its agent
// answers; of several viewers the last who said so counts. Without an agent a
// console is used as it was before there were sizes.
func (o *ConsoleOperation) resize(ctx context.Context, vm string, first TerminalSize, changes <-chan TerminalSize) {
	var client *agentConn
	for {
		var err error
		if _, client, err = o.core.openAgent(ctx, vm, "resize the console of", agentLoginAs{}); err == nil {
			break
		}
		if ctx.Err() != nil || !errors.Is(err, mvm.ErrUnavailable) {
			return
		}
		select { // it boots, which is what consoles are watched for
		case <-ctx.Done():
			return
		case <-time.After(askAgain):
		}
	}
	defer func() { _ = client.Close() }()
	for size := first; ; {
		if client.ResizeConsole(ctx, guest.Size{Cols: size.Cols, Rows: size.Rows}) != nil {
			return // an older agent
		}
		var ok bool
		select {
		case <-ctx.Done():
			return
		case size, ok = <-changes:
			if !ok {
				return
			}
		}
	}
}

func (o *ConsoleOperation) find(ctx context.Context, identifier string) (*mvm.VMInstanceItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.core.findVM(ctx, st, identifier)
}

// signal tells the supervisor of a VM to end or to begin the relay, and waits until
// it has.
func (o *ConsoleOperation) signal(ctx context.Context, vm *mvm.VMInstanceItem, sig unix.Signal, done func() bool) error {
	m, err := o.core.attach(ctx, vm)
	if err != nil {
		return err
	}
	h := m.Handle()
	if err := errors.Join(m.Close(), superviseSignal(h, sig)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, relayLimit)
	defer cancel()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		if done() {
			tick.Stop()
			return nil
		}
		select {
		case <-ctx.Done():
			return mvm.Errorf(mvm.ErrUnavailable, "its supervisor (process %d) does not follow", h.Supervisor.PID).WithHint("restart the VM with 'mvm vm reboot %s'", vm.Name)
		case <-tick.C:
		}
	}
}

func superviseSignal(h vmm.Handle, sig unix.Signal) error {
	if !proc.Alive(h.Supervisor) {
		return mvm.Errorf(mvm.ErrUnavailable, "its supervisor, which relays the console, is gone").WithHint("reboot the VM to get a new one")
	}
	return proc.Signal(h.Supervisor, sig)
}

func dialConsole(ctx context.Context, path string) (net.Conn, error) {
	if path == "" {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "it has no console").WithHint("start the VM anew")
	}
	return fsx.DialUnix(ctx, path)
}

// view copies both ways until one of them ends.
func view(ctx context.Context, conn net.Conn, stdio StreamIO) (ConsoleEnd, error) {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	detached := make(chan struct{})
	go func() {
		if stdio.Stdin != nil {
			_, _ = io.Copy(conn, &untilDetach{r: stdio.Stdin})
		}
		close(detached)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // the relay shows what it has, and closes
		}
	}()
	out := stdio.Stdout
	if out == nil {
		out = io.Discard
	}
	_, err := io.Copy(out, conn)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	select {
	case <-detached:
		return ConsoleDetached, nil
	default:
	}
	return ConsoleClosed, err
}

// The keys that end a session at a console.
const (
	detachFirst  = 'X' & 0x1f // Ctrl-X
	detachSecond = 'd'
)

// untilDetach reads until the detach keys. Ctrl-X with another key after it is
// passed on with that key; typed twice it is passed on once.
type untilDetach struct {
	r     io.Reader
	armed bool // Ctrl-X was the last key
	ended bool
}

func (u *untilDetach) Read(p []byte) (int, error) {
	if u.ended || len(p) < 2 {
		return 0, io.EOF
	}
	for {
		in := make([]byte, len(p)/2) // a Ctrl-X that was held back may come out too
		n, err := u.r.Read(in)
		out := p[:0]
		for _, b := range in[:n] {
			switch {
			case u.armed && (b == detachSecond || b == detachSecond-'a'+'A' || b == detachSecond&0x1f):
				u.ended = true
				return len(out), io.EOF
			case u.armed:
				u.armed = false
				out = append(out, detachFirst)
				if b != detachFirst {
					out = append(out, b)
				}
			case b == detachFirst:
				u.armed = true
			default:
				out = append(out, b)
			}
		}
		if len(out) > 0 || err != nil {
			return len(out), err
		}
	}
}
