package api

import (
	"context"
	"encoding/json"
	"net"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/vmm"
)

// attach finds the running VMM of a VM; vmm.ErrGone says that there is none.
func (c *core) attach(ctx context.Context, vm *mvm.VMInstanceItem) (vmm.Machine, error) {
	if len(vm.Handle) == 0 {
		return nil, vmm.ErrGone
	}
	var h vmm.Handle
	if err := json.Unmarshal(vm.Handle, &h); err != nil {
		return nil, mvm.Errorf(mvm.ErrBroken, "the VM's handle cannot be read: %w", err).WithHint("stop it with 'mvm vm stop --force %s'", vm.Name)
	}
	return c.driverOf(vm.Hypervisor).Attach(ctx, h)
}

// agentLogin is how the host proves itself to a VM's agent, and knows it.
func (c *core) agentLogin(vm *mvm.VMInstanceItem) (guest.Login, error) {
	id, err := c.loadIdentity(vm.ID)
	if err != nil {
		return guest.Login{}, err
	}
	return id.agentLogin()
}

// dialAgent returns what opens streams to the agent of a running VM.
func (c *core) dialAgent(vm *mvm.VMInstanceItem, m vmm.Machine) guest.DialFunc {
	port := c.agentPort(vm)
	return func(ctx context.Context) (net.Conn, error) { return m.DialGuest(ctx, port) }
}

// askGuest returns what the agent says, or nil when it does not answer in time.
func (c *core) askGuest(ctx context.Context, vm *mvm.VMInstanceItem) *VMGuest {
	if !vm.HasAgent {
		return nil
	}
	m, err := c.attach(ctx, vm)
	if err != nil {
		return nil
	}
	defer func() { _ = m.Close() }()
	login, err := c.agentLogin(vm)
	if err != nil {
		return nil
	}
	client, err := guest.Dial(ctx, c.dialAgent(vm, m), login)
	if err != nil {
		return nil
	}
	defer func() { _ = client.Close() }()
	r, err := client.Ready(ctx)
	if err != nil {
		return nil
	}
	return &VMGuest{Hostname: r.Hostname, Kernel: r.Kernel, Agent: r.Version, UptimeS: int64(r.Uptime)}
}

// askToPowerOff has the guest shut down, by its agent or else by what the VMM
// has, and waits until the VMM ends or the limit is over. A guest that is still
// booting hears no power button: its agent is asked again until it answers.
func (c *core) askToPowerOff(ctx context.Context, vm *mvm.VMInstanceItem, m vmm.Machine, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if vm.Status == mvm.StatusPaused { // a guest that stands still hears nothing
		if p, ok := m.(vmm.Pauser); !ok || p.Resume(ctx) != nil {
			return
		}
	}
	if vm.HasAgent && c.agentPowersOff(ctx, vm, m, limit) {
		_, _ = m.Wait(ctx) // an end or the limit: either way the caller looks
		return
	}
	if err := m.Shutdown(ctx); err != nil {
		return // nobody to ask: the caller ends the VMM
	}
	if vm.HasAgent {
		asked := make(chan struct{})
		defer func() {
			cancel()
			<-asked
		}()
		go func() {
			defer close(asked)
			for !c.agentPowersOff(ctx, vm, m, limit) && ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-time.After(askAgain):
				}
			}
		}()
	}
	_, _ = m.Wait(ctx)
}

// askAgain is the pause between two requests to an agent that does not answer.
const askAgain = 250 * time.Millisecond

func (c *core) agentPowersOff(ctx context.Context, vm *mvm.VMInstanceItem, m vmm.Machine, limit time.Duration) bool {
	try, stop := context.WithTimeout(ctx, min(limit, 3*time.Second))
	defer stop()
	return c.powerOffByAgent(try, vm, m) == nil
}

func (c *core) powerOffByAgent(ctx context.Context, vm *mvm.VMInstanceItem, m vmm.Machine) error {
	login, err := c.agentLogin(vm)
	if err != nil {
		return err
	}
	client, err := guest.Dial(ctx, c.dialAgent(vm, m), login)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	return client.PowerOff(ctx)
}

// exitCode returns how a VMM that has ended did, or nil when it runs.
func exitCode(ctx context.Context, m vmm.Machine) *int {
	state, err := m.State(ctx)
	if err != nil || state != vmm.StateExited {
		return nil
	}
	exit, err := m.Wait(ctx)
	if err != nil {
		return nil
	}
	return &exit.Code
}

// Connect opens an SSH session into a VM and returns the exit status of the command
// or shell: over the network, where the guest's host key has to be the one that was
// made for it, or through the agent where no SSH server answers.
func (o *SSHOperation) Connect(ctx context.Context, in SSHInput) (int, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return 1, err
	}
	vm, err := c.findVM(ctx, st, in.Identifier)
	if err != nil {
		return 1, err
	}
	client, err := c.dialSSH(ctx, st, vm, in)
	if err != nil {
		return 1, mvm.Wrap(err, "log in to", vm.Name)
	}
	defer func() { _ = client.Close() }()
	ctx, stop := c.whileItAnswers(ctx, vm, client.Client)
	defer stop()
	defer client.closeLate(ctx)()
	status, err := session(ctx, client.Client, in)
	return status.Code, mvm.Wrap(causeOf(ctx, err), "run a command in", vm.Name)
}

// session runs the command or the login shell.
func session(ctx context.Context, client *guest.Client, in SSHInput) (guest.Status, error) {
	cmd := guest.Cmd{Shell: in.Cmd, Stdin: in.IO.Stdin, Stdout: in.IO.Stdout, Stderr: in.IO.Stderr}
	if t := in.IO.Terminal; t != nil {
		cmd.TTY, cmd.Term, cmd.Size = true, firstOf(in.IO.Term, "xterm"), guest.Size{Cols: t.Cols, Rows: t.Rows}
		if in.IO.Resize != nil {
			sizes := make(chan guest.Size)
			cmd.Resize = sizes
			ended, stop := context.WithCancel(ctx)
			defer stop()
			go relaySizes(ended, in.IO.Resize, sizes)
		}
	}
	return client.Exec(ctx, cmd)
}

func relaySizes(ctx context.Context, from <-chan TerminalSize, to chan<- guest.Size) {
	for {
		select {
		case s, ok := <-from:
			if !ok {
				return
			}
			select {
			case to <- guest.Size{Cols: s.Cols, Rows: s.Rows}:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
