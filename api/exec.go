package api

import (
	"context"
	"errors"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
)

// ExecOperation runs commands in guests through their agents: no network and no
// SSH server is needed in the guest. Those that have no agent are reached by SSH
// over the network.
type ExecOperation struct{ core *core }

// ExecInput is a command to run in a guest. The zero value of each field but
// Identifier takes a default.
type ExecInput struct {
	Identifier string
	Cmd        []string      // the program, looked up in the guest's PATH, and its arguments; none: a login shell
	User       string        // name, uid, name:group or uid:gid; "" is root, without the agent the VM's SSH user
	Env        []string      // "NAME=value", over the login environment
	Dir        string        // to run it in; "" is the user's home
	Timeout    time.Duration // how long it may take with all; 0 sets no limit
	Port       int           // of the agent; 0 takes the one that it has. Without the agent that of the SSH server
	IO         StreamIO
	Signals    <-chan string // sent on to the command: "INT", "TERM", "HUP" (RFC 4254, section 6.10)
}

// Run runs a command and returns its exit status, in a VM of a container image as that
// wants it: with its environment, user and directory. The status is 128 and the number of the
// signal that ended it. A guest that has just been started is waited for as long
// as it may take to boot. When ctx or the limit ends, the command gets SIGTERM. The
// command may be silent; a guest that does not answer at all any more for five minutes,
// and is not paused, is given up with mvm.ErrUnavailable.
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
	vm, client, err := o.core.openAgent(ctx, in.Identifier, what, agentLoginAs{user: in.User, port: in.Port})
	if err != nil {
		return 1, err
	}
	defer func() { _ = client.Close() }()
	alive, stop := o.core.whileItAnswers(ctx, vm, client.Client)
	defer stop()
	defer client.closeLate(alive)()
	in.asContainer(vm.Options.Container)
	cmd := guest.Cmd{
		Argv: in.Cmd, Env: in.Env, Dir: in.Dir, User: in.User, Signal: in.Signals,
		Stdin: in.IO.Stdin, Stdout: in.IO.Stdout, Stderr: in.IO.Stderr,
	}
	in.IO.terminal(alive, &cmd)
	status, err := client.Exec(alive, cmd)
	if err = causeOf(alive, err); errors.Is(err, context.DeadlineExceeded) && outer.Err() == nil {
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
