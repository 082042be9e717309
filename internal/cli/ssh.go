package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

type sshOptions struct{ input api.SSHInput }

func newSSH(a *app) *cobra.Command {
	var o sshOptions
	cmd := &cobra.Command{
		Use:   "ssh VM",
		Short: "Log in to a VM, or run a command in it",
		Long: `Log in to a VM, or run a command in it. Exits with the exit status of the command
in the guest. When standard input is not a terminal and no command is given, the
shell in the guest reads its commands from there.

It goes over the network to the SSH server of the guest, which has to show the host key
that was made for it, and through the agent where no SSH server answers; with --key over
the network only.`,
		Example: `  mvm ssh web
  mvm ssh web -c 'uname -a'
  mvm ssh web --user debian < script.sh`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%q takes one VM", cmd.CommandPath()).withHint("give the command to run with -c '…'")
			}
			return needs(1, 1, "a VM")(cmd, args)
		},
		ValidArgsFunction: a.completeVMs(1),
	}
	f := cmd.Flags()
	f.StringVarP(&o.input.User, "user", "u", "", "user to log in as")
	f.StringVar(&o.input.Key, "key", "", "private key: a path, or the name of a key")
	f.StringVarP(&o.input.Cmd, "cmd", "c", "", "command to run instead of a shell")
	f.IntVarP(&o.input.Timeout, "timeout", "t", 0, "seconds to wait for the connection")
	return a.command(cmd, "SSH.Connect", func(ctx context.Context, m *api.Client, args []string) error {
		if o.input.Timeout < 0 {
			return usagef("--timeout is negative").withHint("write a number of seconds")
		}
		if cmd.Flags().Changed("cmd") && o.input.Cmd == "" {
			return usagef("--cmd is empty").withHint("leave it out for a shell")
		}
		o.input.Identifier = args[0]
		return o.run(ctx, m, a)
	})
}

func (o *sshOptions) run(ctx context.Context, m *api.Client, a *app) error {
	o.input.IO = api.StreamIO{Stdin: a.stdin, Stdout: a.out.Stdout, Stderr: a.out.Stderr, Term: a.getenv("TERM")}
	if o.input.Cmd == "" {
		end, err := a.attachTerminal(&o.input.IO)
		if err != nil {
			return err
		}
		defer end()
	}
	code, err := m.SSH.Connect(ctx, o.input)
	if err != nil {
		return err
	}
	if code != 0 {
		return guestExit(code)
	}
	return nil
}
