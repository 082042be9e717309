package cli

import (
	"runtime"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

type versionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:         "version",
		Short:       "Print the version",
		Long:        "Print the version of mvm. Needs no set-up.",
		Example:     "  mvm version\n  mvm version --json",
		Args:        noArgs,
		Annotations: map[string]string{annotationAPI: noAPI},
	}
	a.jsonFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		v := versionInfo{api.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
		if a.out.JSON {
			return a.out.Object(v)
		}
		if err := a.out.Line("mvm " + v.Version); err != nil {
			return err
		}
		a.out.Detail("built with " + v.Go + " for " + v.OS + "/" + v.Arch)
		return nil
	}
	return cmd
}
