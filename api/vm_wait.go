package api

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// WaitFor says what is waited for: one of the constants, or what WaitPort returns.
type WaitFor string

// What can be waited for.
const (
	WaitNone    WaitFor = ""        // return when the vCPUs run
	WaitReady   WaitFor = "ready"   // the agent answers, or SSH where the guest has no agent
	WaitSSH     WaitFor = "ssh"     // the guest's SSH server sends its banner
	WaitStopped WaitFor = "stopped" // the VM has ended, by itself or by a command; a crash is an error
)

// waitPort is how a wait for a TCP port begins.
const waitPort = "port:"

// WaitPort waits until something in the guest accepts TCP connections on a port.
// It is asked through the agent, and over the network where the guest has none.
func WaitPort(port int) WaitFor { return WaitFor(waitPort + strconv.Itoa(port)) }

// port returns the port that is waited for, or 0 when it is none.
func (w WaitFor) port() int {
	digits, ok := strings.CutPrefix(string(w), waitPort)
	if n, err := strconv.ParseUint(digits, 10, 16); ok && err == nil {
		return int(n)
	}
	return 0
}

// Validate returns mvm.ErrInvalid for what cannot be waited for.
func (w WaitFor) Validate() error {
	switch w {
	case WaitNone, WaitReady, WaitSSH, WaitStopped:
		return nil
	}
	if w.port() > 0 {
		return nil
	}
	return mvm.Errorf(mvm.ErrInvalid, "%s cannot be waited for", mvm.Quote(string(w))).WithHint("use ready, ssh, stopped, or a port such as port:80")
}

// goal says what is waited for in the words of "the guest was not …".
func (w WaitFor) goal() string {
	if n := w.port(); n > 0 {
		return "listening on port " + strconv.Itoa(n)
	}
	if w == WaitSSH {
		return "answering by SSH"
	}
	return string(w)
}

// waitingFor says what a command waits for.
func waitingFor(name string, what WaitFor) string {
	switch {
	case what == WaitSSH:
		return "waiting until the SSH server of " + name + " answers"
	case what.port() > 0:
		return "waiting until port " + strconv.Itoa(what.port()) + " of " + name + " accepts connections"
	}
	return "waiting until " + name + " is " + string(what)
}

// Wait returns when VMs are ready, have stopped, or whatever else what says; VMs
// that are just being started are waited for too. A limit of 0 takes settings.vm
// ready_timeout_sec, and none for WaitStopped. What is not reached in time is
// mvm.ErrUnavailable.
func (o *VMOperation) Wait(ctx context.Context, in VMInput, what WaitFor, limit time.Duration) error {
	if what == WaitNone {
		what = WaitReady
	}
	if err := what.Validate(); err != nil {
		return err
	}
	if limit < 0 {
		return mvm.Errorf(mvm.ErrInvalid, "the time limit is negative").WithHint("0 takes the default")
	}
	_, err := o.each(ctx, "wait for VM", in, func(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) error {
		limit, err := o.core.waitLimit(ctx, what, limit)
		if err != nil {
			return err
		}
		if what != WaitStopped {
			if limit, err = o.core.waitStarted(ctx, st, vm, limit); err != nil {
				return err
			}
		}
		return o.core.waitFor(ctx, vm, what, limit)
	})
	return err
}

// waitLimit is how long may be waited; 0 is for ever.
func (c *core) waitLimit(ctx context.Context, what WaitFor, asked time.Duration) (time.Duration, error) {
	if asked > 0 || what == WaitStopped {
		return asked, nil
	}
	set, err := loadSettings(ctx, c.st)
	if err != nil {
		return 0, err
	}
	return time.Duration(set.num("settings.vm", "ready_timeout_sec")) * time.Second, nil
}

// phasePoll is the pause between two looks at a VM that another command moves.
const phasePoll = 50 * time.Millisecond

// waitStarted returns when a VM runs that another command may be starting, with
// what is left of the limit; vm is then as it is by now.
func (c *core) waitStarted(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, limit time.Duration) (time.Duration, error) {
	end, left := time.Now().Add(limit), limit
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	for vm.Status == mvm.StatusStarting {
		err := c.lookAgain(ctx, st, vm)
		left = max(time.Millisecond, time.Until(end).Round(time.Millisecond))
		if err != nil {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return 0, mvm.Errorf(mvm.ErrUnavailable, "it was not started within %s", limit).WithHint("see 'mvm vm inspect %s'", vm.Name)
			}
			return 0, err
		}
	}
	if vm.Status != mvm.StatusRunning {
		hint := "start it with 'mvm vm start " + vm.Name + "'"
		if vm.Status == mvm.StatusPaused {
			hint = "let it go on with 'mvm vm resume " + vm.Name + "'"
		}
		return 0, mvm.Errorf(mvm.ErrConflict, "it is %s", vm.Status).WithHint("%s", hint)
	}
	return left, nil
}

// lookAgain reads a VM anew after a pause.
func (c *core) lookAgain(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(phasePoll):
	}
	now, err := st.GetVM(ctx, vm.ID)
	if errors.Is(err, mvm.ErrNotFound) {
		return mvm.Errorf(mvm.ErrNotFound, "it was removed meanwhile").WithHint("see 'mvm vm ls'")
	}
	if err != nil {
		return err
	}
	c.observe(ctx, st, now)
	*vm = *now
	return nil
}

// waitFor returns when the guest is what is waited for, and fails when its VMM
// ends before or the limit is over.
func (c *core) waitFor(ctx context.Context, vm *mvm.VMInstanceItem, what WaitFor, limit time.Duration) error {
	limit, err := c.waitLimit(ctx, what, limit)
	if err != nil {
		return err
	}
	if what == WaitStopped {
		return c.waitStopped(ctx, vm, limit)
	}
	m, err := c.attach(ctx, vm)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = whileItRuns(ctx, m, vm, what.goal(), func(ctx context.Context) error { return c.waitGuest(ctx, vm, m, what) })
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return mvm.Errorf(mvm.ErrUnavailable, "the guest was not %s within %s", what.goal(), limit).
			WithHint("it runs on; its console is in %s; wait longer with 'mvm vm wait %s --for %s'", deref(vm.SerialOutputPath), vm.Name, what)
	}
	if err == nil && what == WaitReady {
		c.mountVolumes(ctx, vm)
	}
	return err
}

// whileItRuns waits for a guest by wait, whose context ends when the VMM does: then
// there is nothing more to wait for, and what happened is said.
func whileItRuns(ctx context.Context, m vmm.Machine, vm *mvm.VMInstanceItem, goal string, wait func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gone := make(chan vmm.Exit, 1)
	go func() {
		if exit, err := m.Wait(ctx); err == nil {
			gone <- exit
			cancel()
		}
	}()
	err := wait(ctx)
	select {
	case exit := <-gone:
		return mvm.Errorf(mvm.ErrUnavailable, "the VMM ended before the guest was %s: %s", goal, firstOf(exit.Reason, "no reason given")).
			WithHint("its console is in %s", deref(vm.SerialOutputPath))
	default:
		return err
	}
}

// waitGuest waits for what the guest itself has to do.
func (c *core) waitGuest(ctx context.Context, vm *mvm.VMInstanceItem, m vmm.Machine, what WaitFor) error {
	port := what.port()
	switch {
	case what == WaitSSH, what == WaitReady && !vm.HasAgent:
		return guest.WaitTCP(ctx, net.JoinHostPort(vm.IPv4, "22"))
	case !vm.HasAgent:
		return guest.WaitDial(ctx, net.JoinHostPort(vm.IPv4, strconv.Itoa(port)))
	}
	login, err := c.agentLogin(vm)
	if err != nil {
		return err
	}
	if port > 0 {
		return guest.WaitPort(ctx, c.dialAgent(vm, m), login, port, "localhost", vm.IPv4)
	}
	client, _, err := guest.WaitReady(ctx, c.dialAgent(vm, m), login)
	if err != nil {
		return err
	}
	return client.Close()
}

// waitStopped returns when the VM does not run any more; a limit of 0 is none.
func (c *core) waitStopped(ctx context.Context, vm *mvm.VMInstanceItem, limit time.Duration) error {
	outer := ctx
	if limit > 0 {
		limited, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		ctx = limited
	}
	err := c.untilStopped(ctx, vm)
	if ctx.Err() != nil && outer.Err() == nil {
		return mvm.Errorf(mvm.ErrUnavailable, "it was not stopped within %s: it is %s", limit, vm.Status).WithHint("stop it with 'mvm vm stop %s'", vm.Name)
	}
	return err
}

func (c *core) untilStopped(ctx context.Context, vm *mvm.VMInstanceItem) error {
	for {
		switch vm.Status {
		case mvm.StatusStopped:
			return nil
		case mvm.StatusCrashed, mvm.StatusError:
			return mvm.Errorf(mvm.ErrUnavailable, "it is %s: %s", vm.Status, firstOf(vm.StatusReason, "no reason given")).WithHint("see 'mvm logs %s'", vm.Name)
		case mvm.StatusRunning, mvm.StatusPaused:
			if m, err := c.attach(ctx, vm); err == nil {
				_, _ = m.Wait(ctx) // its end or ctx's: lookAgain tells
				_ = m.Close()
			}
		}
		if err := c.lookAgain(ctx, c.st, vm); err != nil {
			return err
		}
	}
}
