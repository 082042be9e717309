package cli

import (
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/pflag"
)

// vmNetFlags are the flags of how a VM is reached.
func vmNetFlags(f *pflag.FlagSet, in *api.VMCreateInput) {
	f.StringArrayVarP(&in.Publish, "publish", "p", nil, "lead a port of this host to the VM: [ADDRESS:]PORT:GUESTPORT[/udp]; may be repeated")
	f.StringVar(&in.DNSServer, "dns", "", "DNS servers that answer it, in place of this host's resolvers")
	f.BoolVar(&in.Isolate, "isolate", false, "keep it apart from all other VMs of its network")
}
