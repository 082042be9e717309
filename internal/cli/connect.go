package cli

import (
	"context"
	"os"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newConnect(a *app) *cobra.Command {
	var input api.SSHProxyInput
	cmd := &cobra.Command{
		Use:   "connect VM",
		Short: "Connect standard input and output with a VM",
		Long: `Connect standard input and output with the SSH server of the agent in a VM, as a
ProxyCommand of ssh, or with --port with any TCP port of the guest. It needs no network
in the guest. 'mvm ssh-config' prints a configuration that uses it.`,
		Example: `  mvm ssh-config web >> ~/.ssh/config && ssh web
  mvm connect web --port 80`,
		Args:              needs(1, 1, "a VM"),
		ValidArgsFunction: a.completeVMs(1),
	}
	cmd.Flags().IntVarP(&input.Port, "port", "p", 0, "TCP port of the guest instead of the agent's SSH server")
	return a.command(cmd, "SSH.Proxy", func(ctx context.Context, m *api.Client, args []string) error {
		input.Identifier, input.IO = args[0], api.StreamIO{Stdin: a.stdin, Stdout: a.out.Stdout}
		return m.SSH.Proxy(ctx, input)
	})
}

func newSSHConfig(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-config VM",
		Short: "Print a configuration of ssh for a VM",
		Long: `Print a Host block for ssh, scp, rsync, ansible and editors, that reaches a VM through
'mvm connect'. The VM's key and its known host are written into its own directory; no
other file of ssh is used or changed.`,
		Example: `  mvm ssh-config web >> ~/.ssh/config
  ssh -F <(mvm ssh-config web) web`,
		Args:              needs(1, 1, "a VM"),
		ValidArgsFunction: a.completeVMs(1),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "SSH.Config", func(ctx context.Context, m *api.Client, args []string) error {
		program, err := os.Executable()
		if err != nil {
			program = "" // the one in PATH
		}
		c, err := m.SSH.Config(ctx, api.SSHConfigInput{Identifier: args[0], Program: program})
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(c)
		}
		return a.out.Raw(c.String())
	})
}
