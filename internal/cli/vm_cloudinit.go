package cli

import (
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

// cloudInitOptions are the flags of vm create for the image's own cloud-init.
type cloudInitOptions struct {
	mode string
	port int
}

func (o *cloudInitOptions) flags(cmd *cobra.Command, in *api.VMCreateInput) {
	f := cmd.Flags()
	f.StringVar(&o.mode, "cloud-init-mode", "", "how the image's cloud-init gets its data: inject, iso, net, or off (the default)")
	f.StringVar(&in.CustomUserData, "cloudinit-config", "", "file of user data, merged with mvm's; without a mode: inject")
	f.IntVar(&o.port, "nocloud-net-port", 0, "port of the server in mode net; 0 takes a free one")
	f.BoolVar(&in.SkipCINetworkConfig, "skip-ci-network-config", false, "have cloud-init leave the network alone")
	f.BoolVar(&in.KeepCloudInitISO, "keep-cloud-init-iso", false, "keep the ISO of mode iso when the VM has started")
	f.StringVar(&in.CloudInitISOPath, "cloud-init-iso", "", "your own ISO with the label cidata, for mode iso")
	completeFlag(cmd, "cloud-init-mode", fixed("inject", "iso", "net", "off"))
}

func (o *cloudInitOptions) resolve(cmd *cobra.Command, in *api.VMCreateInput) {
	in.CloudInitMode = mvm.CloudInitMode(o.mode)
	in.NocloudNetPort = ifGiven(cmd.Flags().Changed("nocloud-net-port"), o.port)
}
