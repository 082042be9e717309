package cli

import (
	"context"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

type runOptions struct {
	vm      vmCreateOptions
	exec    execOptions
	timeout span
	keep    bool

	container containerOptions
	insecure  bool

	rm bool
}

func newRun(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run IMAGE [-- CMD...]",
		Short: "Run a command in a new VM, and remove that",
		Long: `Make a VM from an image, run a command in it through its agent, and remove the VM
with its disk when the command has ended. Exits with the exit status of the command; when
mvm itself fails, that is 1. Without a command it is a login shell. An image that is not
there is got first.

A container image (oci://NAME) runs its entrypoint, with CMD in place of its own arguments,
and with its environment, user and directory, each of which a flag here goes before.

Standard input, output and error are those of the command, each for itself; with -t it
gets a terminal. While the VM is made, Ctrl-C undoes that; then Ctrl-C and SIGTERM go to
the command, and the third in a row ends it. The VM is removed in any case: when mvm was
killed, the next mvm command does it. --keep leaves it running.`,
		Example: `  mvm run debian:12 -- apt-get --version
  mvm run -it oci://alpine
  mvm run oci://alpine:3.20 -- uname -a
  mvm run --entrypoint /bin/sh oci://ghcr.io/owner/app -c 'id; env'
  mvm run --mem 2G --vcpu 2 -v data:/srv -e DEBUG=1 -w /srv debian:12 -- make test
  mvm run --keep --name web tiny true`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() == 0 {
				return usagef("%q needs an image before the command", cmd.CommandPath()).withHint("usage: %s", usageLine(cmd))
			}
			return needs(1, -1, "an image")(cmd, args[:min(1, len(args))])
		},
		ValidArgsFunction: a.completeImages(1),
	}
	f := cmd.Flags()
	o.vm.machineFlags(a, cmd)
	o.exec.streamFlags(cmd)
	o.container.entrypointFlag(cmd)
	f.BoolVar(&o.insecure, "insecure", false, "plain HTTP to the registry of an image that is not there")
	f.StringVarP(&o.exec.input.User, "user", "u", "", "user to run it as: NAME, UID, NAME:GROUP or UID:GID (default root, or the container image's)")
	f.BoolVarP(&o.exec.tty, "tty", "t", false, "give it a terminal")
	f.Var(&o.timeout, "timeout", "how long the command may take, such as 90s; then it is sent SIGTERM")
	f.StringVar(&o.vm.input.Name, "name", "", "name of the VM (default run- and some digits)")
	f.BoolVar(&o.keep, "keep", false, "leave the VM running")
	f.BoolVar(&o.rm, "rm", true, "remove the VM at the end; =false is --keep")
	return undone(a.command(cmd, "VM.Run", func(ctx context.Context, m *api.Client, args []string) error {
		if err := o.vm.resolve(cmd); err != nil {
			return err
		}
		if f.Changed("name") && o.vm.input.Name == "" {
			return usagef("--name is empty").withHint("leave it out for a name that is made up")
		}
		o.vm.input.Image, o.exec.input.Cmd = args[0], args[1:]
		o.container.resolve(cmd, &o.vm.input)
		o.exec.input.Timeout = time.Duration(o.timeout)
		return o.run(ctx, m, a)
	}))
}

func (o *runOptions) run(ctx context.Context, m *api.Client, a *app) error {
	p := a.out.Progress()
	show := p.Show
	if a.out.ErrWidth == 0 && !a.out.Verbose { // standard error is the command's
		show = nil
	}
	end := func() {}
	defer func() { end() }()
	in := api.RunInput{VM: o.vm.input, Exec: o.exec.input, Keep: o.keep || !o.rm, Insecure: o.insecure}
	in.Ready = func(vm *mvm.VMInstanceItem, exec *api.ExecInput) error {
		p.Done()
		if in.Keep {
			a.out.Notice("this is " + mvm.Quote(vm.Name))
		}
		o.exec.input = *exec
		detach, err := o.exec.attach(a)
		if err != nil {
			return err
		}
		*exec, end = o.exec.input, detach
		return nil
	}
	code, err := m.VM.Run(ctx, in, api.OnProgress(show))
	p.Stop()
	if err != nil {
		return err
	}
	if code != 0 {
		return guestExit(code)
	}
	return nil
}
