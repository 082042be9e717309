package api

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// ExecOperation runs commands in guests through their agents: no network and no
// SSH server is needed in the guest.
type ExecOperation struct{ core *core }

// ExecInput is a command to run in a guest. The zero value of each field but
// Identifier takes a default.
type ExecInput struct {
	Identifier string
	Cmd        []string      // the program, looked up in the guest's PATH, and its arguments; none: a login shell
	User       string        // name, uid, name:group or uid:gid; "" is root
	Env        []string      // "NAME=value", over the login environment
	Dir        string        // to run it in; "" is the user's home
	Timeout    time.Duration // how long it may take with all; 0 sets no limit
	Port       int           // of the agent; 0 takes defaults.vm vsock_port
	IO         StreamIO
	Signals    <-chan string // sent on to the command: "INT", "TERM", "HUP" (RFC 4254, section 6.10)
}

// Run runs a command and returns its exit status, 128 and the number of the
// signal that ended it. A guest that has just been started is waited for as long
// as it may take to boot. When ctx or the limit ends, the command gets SIGTERM.
func (o *ExecOperation) Run(ctx context.Context, in ExecInput) (int, error) {
	const what = "run a command in"
	if err := in.validate(); err != nil {
		return 1, err
	}
	outer := ctx
	if in.Timeout > 0 {
		limited, cancel := context.WithTimeout(ctx, in.Timeout)
		defer cancel()
		ctx = limited
	}
	vm, client, err := o.core.openAgent(ctx, in.Identifier, what, agentLoginAs{port: in.Port})
	if err != nil {
		return 1, err
	}
	defer func() { _ = client.Close() }()
	defer client.closeLate(ctx)()
	cmd := guest.Cmd{
		Argv: in.Cmd, Env: in.Env, Dir: in.Dir, User: in.User, Signal: in.Signals,
		Stdin: in.IO.Stdin, Stdout: in.IO.Stdout, Stderr: in.IO.Stderr,
	}
	ended, stop := context.WithCancel(ctx)
	defer stop()
	in.IO.terminal(ended, &cmd)
	status, err := client.Exec(ctx, cmd)
	if errors.Is(err, context.DeadlineExceeded) && outer.Err() == nil {
		err = mvm.Errorf(mvm.ErrUnavailable, "it did not end within %s and was sent SIGTERM", in.Timeout).WithHint("give it longer with --timeout, or leave that out")
	}
	return status.Code, mvm.Wrap(err, what, vm.Name)
}

func (in ExecInput) validate() error {
	if in.Timeout < 0 {
		return mvm.Errorf(mvm.ErrInvalid, "the time limit is negative").WithHint("0 sets none")
	}
	if in.Port < 0 || in.Port > 65535 {
		return mvm.Errorf(mvm.ErrInvalid, "%d is not a port", in.Port).WithHint("leave it out for the one that the agent has")
	}
	if len(in.Cmd) > 0 && in.Cmd[0] == "" {
		return mvm.Errorf(mvm.ErrInvalid, "the command's name is empty").WithHint("leave the command out for a login shell")
	}
	return nil
}

// terminal asks for a pty in the guest where the caller has one.
func (s StreamIO) terminal(ctx context.Context, cmd *guest.Cmd) {
	if s.Terminal == nil {
		return
	}
	cmd.TTY, cmd.Term, cmd.Size = true, firstOf(s.Term, "xterm"), guest.Size{Cols: s.Terminal.Cols, Rows: s.Terminal.Rows}
	if s.Resize != nil {
		sizes := make(chan guest.Size)
		cmd.Resize = sizes
		go relaySizes(ctx, s.Resize, sizes)
	}
}

// agentLoginAs says how to log in to an agent other than usual.
type agentLoginAs struct {
	user string // "" is root
	port int    // 0 is the usual one
}

// openAgent finds a running VM and logs in to its agent. A guest that may still be
// booting is waited for. Its errors name the VM.
func (c *core) openAgent(ctx context.Context, selector, what string, as agentLoginAs) (*mvm.VMInstanceItem, *agentConn, error) {
	st, err := c.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	vm, err := c.findVM(ctx, st, selector)
	if err != nil {
		return nil, nil, err
	}
	conn, err := c.dialVM(ctx, st, vm, as)
	if err != nil {
		return vm, nil, mvm.Wrap(err, what, vm.Name)
	}
	return vm, conn, nil
}

// agentConn is a login to a VM's agent.
type agentConn struct {
	*guest.Client
	dial    guest.DialFunc // opens another stream to the agent
	release func() error
	once    sync.Once
}

// Close ends the login and what runs over it; again it does nothing.
func (a *agentConn) Close() (err error) {
	a.once.Do(func() { err = errors.Join(a.Client.Close(), a.release()) })
	return err
}

// endGrace is how long a guest has to answer once what it does was ended.
const endGrace = 2 * time.Second

// closeLate ends the login some time after ctx has ended: a guest that stands still
// does not take the request to end either. Calling stop makes it forget that.
func (a *agentConn) closeLate(ctx context.Context) (stop func()) {
	late := time.AfterFunc(time.Hour, func() { _ = a.Close() })
	late.Stop()
	forget := context.AfterFunc(ctx, func() { late.Reset(endGrace) })
	return func() { _, _ = forget(), late.Stop() }
}

func (c *core) dialVM(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, as agentLoginAs) (*agentConn, error) {
	if err := reachable(vm); err != nil {
		return nil, err
	}
	set, err := loadSettings(ctx, st)
	if err != nil {
		return nil, err
	}
	login, err := c.agentLogin(vm)
	if err != nil {
		return nil, err
	}
	if as.user != "" {
		login.User = as.user
	}
	m, err := c.attach(ctx, vm)
	if err != nil {
		return nil, err
	}
	dial := c.dialAgent(vm, m)
	if as.port != 0 {
		dial = dialPort(m, as.port)
	}
	client, err := guest.Dial(ctx, dial, login)
	if left := bootLeft(vm, set); err != nil && left > 0 && mvm.KindOf(err) == mvm.ErrUnavailable && ctx.Err() == nil {
		boot, cancel := context.WithTimeout(ctx, left)
		client, _, err = guest.WaitReady(boot, dial, login)
		cancel()
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return &agentConn{Client: client, dial: dial, release: m.Close}, nil
}

// reachable refuses a VM whose agent cannot answer.
func reachable(vm *mvm.VMInstanceItem) error {
	hint := "start it with 'mvm vm start " + vm.Name + "'"
	if vm.Status == mvm.StatusPaused {
		hint = "let it go on with 'mvm vm resume " + vm.Name + "'"
	}
	if vm.Status != mvm.StatusRunning {
		return mvm.Errorf(mvm.ErrConflict, "it is %s; it has to be running", vm.Status).WithHint("%s", hint)
	}
	if !vm.HasAgent {
		return mvm.Errorf(mvm.ErrUnsupported, "it was made without the agent").WithHint("reach it over the network with 'mvm ssh %s'", vm.Name)
	}
	return nil
}

// bootLeft is how much longer a VM that was started a moment ago may take to be
// ready.
func bootLeft(vm *mvm.VMInstanceItem, set settings) time.Duration {
	if vm.ProcessStartTime == nil {
		return 0
	}
	limit := time.Duration(set.num("settings.vm", "ready_timeout_sec")) * time.Second
	return time.Until(time.UnixMilli(*vm.ProcessStartTime).Add(limit))
}

// dialPort opens streams to an agent that listens elsewhere than usual.
func dialPort(m vmm.Machine, port int) guest.DialFunc {
	return func(ctx context.Context) (net.Conn, error) { return m.DialGuest(ctx, uint32(port)) } //nolint:gosec // checked by ExecInput.validate
}
