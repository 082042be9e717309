package cli

import (
	"context"
	"net"
	"strconv"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newForward(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forward VM [ADDRESS:]HOSTPORT:GUESTPORT...",
		Short: "Lead ports of the host into a VM",
		Long: `Lead TCP ports of the host to ports of a VM through its agent, until Ctrl-C. It needs
no network in the guest. Without an address only this host can connect (127.0.0.1); a
HOSTPORT of 0 takes a free one. Prints a line per port when it listens.`,
		Example: `  mvm forward web 8080:80
  mvm forward web 5432 127.0.0.2:8443:443`,
		Args:              needs(2, -1, "a VM and a port"),
		ValidArgsFunction: a.completeVMs(1),
	}
	return a.command(cmd, "SSH.Forward", func(ctx context.Context, m *api.Client, args []string) error {
		in := api.SSHForwardInput{Identifier: args[0], Refused: func(err error) { a.out.Warn(err.Error()) }}
		for _, s := range args[1:] {
			p, err := api.ParsePortForward(s)
			if err != nil {
				return usagef("%s", err).withHint("%s", mvm.HintOf(err))
			}
			in.Ports = append(in.Ports, p)
		}
		var printErr error
		in.Ready = func(p api.PortForward) {
			printErr = a.out.Line(net.JoinHostPort(p.Address, strconv.Itoa(p.HostPort)) + " -> " + args[0] + ":" + strconv.Itoa(p.GuestPort))
		}
		err := m.SSH.Forward(ctx, in)
		if interrupted(ctx) && cancelled(err) {
			err = nil // Ctrl-C is how it ends
		}
		if err == nil {
			err = printErr
		}
		return err
	})
}
