package cli

import (
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

// containerOptions say what a container image runs.
type containerOptions struct{ entrypoint string }

func (o *containerOptions) entrypointFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.entrypoint, "entrypoint", "", "program in place of a container image's entrypoint; empty for none")
}

// resolve tells an entrypoint that is empty from one that was not given.
func (o *containerOptions) resolve(cmd *cobra.Command, in *api.VMCreateInput) {
	if !cmd.Flags().Changed("entrypoint") {
		return
	}
	in.Entrypoint = []string{}
	if o.entrypoint != "" {
		in.Entrypoint = append(in.Entrypoint, o.entrypoint)
	}
}
