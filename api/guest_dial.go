package api

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// agentLoginAs says how to log in to a guest other than usual.
type agentLoginAs struct {
	user string // "" is root, over the network the VM's SSH user
	port int    // of the agent, or of the SSH server; 0 is the usual one
	key  string // over the network only: a path, or the name of a key
}

// openAgent finds a running VM and logs in to its agent, or to its SSH server where
// it has no agent. A guest that may still be booting is waited for. Its errors name
// the VM.
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

// agentConn is a login to a VM's agent, or to its SSH server.
type agentConn struct {
	*guest.Client
	dial    guest.DialFunc // opens another stream to it
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
	if err := running(vm); err != nil {
		return nil, err
	}
	if !vm.HasAgent {
		return c.dialNetwork(ctx, st, vm, SSHInput{User: as.user, Key: as.key}, as.port)
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
	port := c.agentPort(vm)
	if as.port != 0 {
		port = uint32(as.port) //nolint:gosec // checked by ExecInput.validate
	}
	dial := dialPort(m, port)
	client, err := reach(ctx, m, vm, func(ctx context.Context) (*guest.Client, error) {
		client, err := guest.Dial(ctx, dial, login)
		if left := bootLeft(vm, set); err != nil && left > 0 && mvm.KindOf(err) == mvm.ErrUnavailable && ctx.Err() == nil {
			boot, cancel := context.WithTimeout(ctx, left)
			client, _, err = guest.WaitReady(boot, dial, login)
			cancel()
		}
		return client, err
	})
	if err == nil {
		client, err = c.renewAgent(ctx, vm, client, dial, login)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	client.UseData(dialPort(m, wire.DataPort(port)))
	return &agentConn{Client: client, dial: dial, release: m.Close}, nil
}

// reach logs in to a guest while its VMM runs: when that ends, nobody will answer.
func reach(ctx context.Context, m vmm.Machine, vm *mvm.VMInstanceItem, login func(context.Context) (*guest.Client, error)) (*guest.Client, error) {
	var client *guest.Client
	err := whileItRuns(ctx, m, vm, "reached", func(ctx context.Context) (err error) {
		client, err = login(ctx)
		return err
	})
	if err != nil && client != nil {
		return nil, errors.Join(err, client.Close())
	}
	return client, err
}

// running refuses a VM that cannot answer.
func running(vm *mvm.VMInstanceItem) error {
	hint := "start it with 'mvm vm start " + vm.Name + "'"
	if vm.Status == mvm.StatusPaused {
		hint = "let it go on with 'mvm vm resume " + vm.Name + "'"
	}
	if vm.Status != mvm.StatusRunning {
		return mvm.Errorf(mvm.ErrConflict, "it is %s; it has to be running", vm.Status).WithHint("%s", hint)
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

// dialPort returns what opens streams to a port of a guest's agent.
func dialPort(m vmm.Machine, port uint32) guest.DialFunc {
	return func(ctx context.Context) (net.Conn, error) { return m.DialGuest(ctx, port) }
}
