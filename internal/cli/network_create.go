package cli

import (
	"context"
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

type networkCreateOptions struct {
	input          api.NetworkCreateInput
	noNAT, noDNS   bool
	nonInteractive bool
}

func newNetworkCreate(a *app) *cobra.Command {
	var o networkCreateOptions
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a network",
		Long: `Make a network: a bridge with an address of this host's as gateway, apart from
all other networks. Without --subnet it gets a free one. Its VMs know each other by
name (web or web.mvm), and reach the outside
by this host's address, through whichever interface the default route names at the
time, unless --nat-gateways names some.`,
		Example: `  mvm network create lab
  mvm network create dmz --subnet 192.168.77.0/24 --ipv4-gateway 192.168.77.254
  mvm network create inner --no-nat
  mvm network create office --nat-gateways wlan0,eth0`,
		Args:              needs(1, 1, "a name for the network"),
		ValidArgsFunction: fixed(),
	}
	f, in := cmd.Flags(), &o.input
	f.StringVar(&in.Subnet, "subnet", "", "subnet, such as 172.27.1.0/24; a free one when not given")
	f.StringVar(&in.IPv4Gateway, "ipv4-gateway", "", "this host's address in the subnet (default: the first)")
	f.BoolVar(&o.noNAT, "no-nat", false, "no way out: VMs reach each other and this host alone")
	f.BoolVar(&o.noDNS, "no-dns", false, "no DNS on the gateway: VMs do not know each other's names")
	f.StringSliceVar(&in.NATGateways, "nat-gateways", nil, "interfaces that VMs may leave by")
	f.BoolVarP(&in.SetDefault, "default", "d", false, "put new VMs on it when no network is named")
	f.BoolVar(&in.AllowPublicSubnet, "allow-public-subnet", false, "take a subnet that belongs to somebody on the internet")
	f.BoolVar(&o.nonInteractive, "non-interactive", false, "ask nothing")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Network.Create", func(ctx context.Context, m *api.Client, args []string) error {
		in.Name = args[0]
		if cmd.Flags().Changed("no-nat") {
			nat := !o.noNAT
			in.NATEnabled = &nat
		}
		if cmd.Flags().Changed("no-dns") {
			dns := !o.noDNS
			in.DNSEnabled = &dns
		}
		return o.run(ctx, m, a)
	}))
}

func (o *networkCreateOptions) run(ctx context.Context, m *api.Client, a *app) error {
	n, err := m.Network.Create(ctx, o.input)
	var ask *mvm.NeedsInteraction
	if errors.As(err, &ask) && ask.Consent && !o.nonInteractive && a.canAsk() {
		if err := a.confirm(ctx, ask.What+". Go on?", false); err != nil {
			return err
		}
		o.input.AllowPublicSubnet = true
		n, err = m.Network.Create(ctx, o.input)
	}
	if err != nil {
		return err
	}
	if a.out.JSON {
		return a.out.Object(n)
	}
	a.out.Detail(n.Subnet + " on bridge " + n.Bridge + ", gateway " + n.IPv4Gateway)
	return a.out.Line(n.Name)
}
