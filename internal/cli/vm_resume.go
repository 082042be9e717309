package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newVMResume(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "resume VM...",
		Short:             "Let paused VMs go on",
		Long:              "Let VMs that were paused go on where they stood.",
		Example:           "  mvm vm resume web",
		Args:              needs(1, -1, "a VM"),
		ValidArgsFunction: a.completeVMs(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.Resume", func(ctx context.Context, m *api.Client, args []string) error {
		return a.runVerb(ctx, m.VM.Resume, api.VMInput{Identifiers: args})
	})
}
