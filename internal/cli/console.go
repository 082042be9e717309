package cli

import (
	"context"
	"strconv"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

type consoleOptions struct{ state, kill bool }

func newConsole(a *app) *cobra.Command {
	var o consoleOptions
	cmd := &cobra.Command{
		Use:   "console VM",
		Short: "Attach to the serial console of a VM",
		Long: `Attach to the serial console of a VM. Ctrl-X and then D detach; Ctrl-X twice types it
once. What the guest printed last is shown first. Several may be attached at once.

--state says whether the console is relayed, --kill disconnects all who are attached;
the VM and its log go on.`,
		Example: `  mvm console web
  mvm console web --state --json
  mvm console web --kill`,
		Args:              needs(1, 1, "a VM"),
		ValidArgsFunction: a.completeVMs(1),
	}
	cmd.Flags().BoolVar(&o.state, "state", false, "say whether the console is relayed, and by which process")
	cmd.Flags().BoolVar(&o.kill, "kill", false, "disconnect all who are attached")
	a.jsonFlag(cmd)
	return a.command(cmd, "Console.Attach Console.GetConnectionInfo Console.GetState Console.Kill", func(ctx context.Context, m *api.Client, args []string) error {
		if err := onlyOne(cmd, "state", "kill"); err != nil {
			return err
		}
		switch {
		case o.state:
			return a.consoleState(ctx, m, args[0])
		case o.kill:
			return a.consoleKill(ctx, m, args[0])
		case a.out.JSON:
			info, err := m.Console.GetConnectionInfo(ctx, args[0])
			if err != nil {
				return err
			}
			return a.out.Object(info)
		}
		return a.consoleAttach(ctx, m, args[0])
	})
}

func (a *app) consoleState(ctx context.Context, m *api.Client, vm string) error {
	s, err := m.Console.GetState(ctx, vm)
	switch {
	case err != nil:
		return err
	case a.out.JSON:
		return a.out.Object(s)
	case !s.Running:
		return a.out.Line("not running")
	}
	return a.out.Line("running, process " + strconv.Itoa(s.PID) + ", socket " + s.SocketPath)
}

func (a *app) consoleKill(ctx context.Context, m *api.Client, vm string) error {
	ended, err := m.Console.Kill(ctx, vm)
	switch {
	case err != nil:
		return err
	case a.out.JSON:
		return a.out.Object(map[string]bool{"killed": ended})
	case !ended:
		a.out.Notice("its console was not relayed")
	}
	return nil
}

func (a *app) consoleAttach(ctx context.Context, m *api.Client, vm string) error {
	info, err := m.Console.GetConnectionInfo(ctx, vm)
	if err != nil {
		return err
	}
	stdio := api.StreamIO{Stdin: a.stdin, Stdout: a.out.Stdout}
	if _, ok := a.terminal(); ok {
		a.out.Notice("attached to " + mvm.Quote(info.VMName) + "; Ctrl-X and then D detach")
	}
	restore, err := a.attachTerminal(&stdio)
	if err != nil {
		return err
	}
	end, err := m.Console.Attach(ctx, info.VMID, stdio)
	restore()
	if err != nil {
		return err
	}
	if stdio.Terminal != nil {
		what := "detached"
		if end == api.ConsoleClosed {
			what = "the console was closed: the VM ended, or another command did it"
		}
		a.out.Notice("\n" + what)
	}
	return nil
}
