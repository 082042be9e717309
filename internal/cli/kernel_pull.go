package cli

import (
	"context"
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type kernelPullOptions struct{ input api.KernelPullInput }

func newKernelPull(a *app) *cobra.Command {
	var o kernelPullOptions
	cmd := &cobra.Command{
		Use:   "pull [TYPE[:VERSION]]",
		Short: "Get or build a kernel",
		Long: `Get a kernel into the cache. The types:

debian       the distribution's cloud kernel, from the package mirror that this host
             is configured for; nothing is installed on the host
firecracker  one that Firecracker's own tests run with. Upstream publishes no
             checksums for them: give the one that you know with --checksum, or take
             it unchecked with --skip-checksum, which inspect will show
official     built here from the source of kernel.org, whose checksum is checked by
             its signature; or with --source package from the distribution's
             linux-source. Takes minutes, and the compiler's tools

An official kernel begins with Firecracker's configuration (--base firecracker), with
the smallest one that runs a distribution (--base minimal), or with a file. What guests
need, --features and --config are put on top; an option that does not come true is told
before anything is compiled. The same source and configuration are not built twice.

Features: ` + api.KernelFeatures() + `.`,
		Example: `  mvm kernel pull debian --default
  mvm kernel pull firecracker:6.1 --skip-checksum
  mvm kernel pull official --features kvm,nftables --jobs 4
  mvm kernel pull official:6.1 --source package --base minimal --config ./my.config`,
		Args:              needs(0, 1, ""),
		ValidArgsFunction: fixed("debian", "firecracker", "official"),
	}
	f := cmd.Flags()
	f.StringVar(&o.input.KernelType, "type", "", "kernel type, instead of the argument")
	f.StringVar(&o.input.Version, "version", "", "version; the newest, of official kernels that of the settings")
	f.StringVar(&o.input.Arch, "arch", "", "architecture: x86_64 or arm64 (firecracker only); this host's when not given")
	f.BoolVarP(&o.input.SetDefault, "default", "d", false, "make it the default kernel")
	f.BoolVarP(&o.input.Force, "force", "f", false, "get it again when it is there")
	f.IntVar(&o.input.Jobs, "jobs", 0, "how many compilers at once (official); one per CPU when not given")
	f.BoolVar(&o.input.KeepBuildDir, "keep-build-dir", false, "leave source and objects, so that the next build is quicker (official)")
	f.BoolVar(&o.input.CleanBuild, "clean-build", false, "use nothing of earlier builds (official)")
	f.StringVar(&o.input.KernelConfig, "config", "", "file with options of your own, like CONFIG_KVM=y (official)")
	f.StringSliceVar(&o.input.Features, "features", nil, "what it should have besides, separated by commas (official)")
	f.StringVar(&o.input.Base, "base", "", "what the configuration begins with: firecracker, minimal or a file (official)")
	f.StringVar(&o.input.Source, "source", "", "where the source comes from: kernel.org or package (official)")
	f.BoolVar(&o.input.SkipChecksum, "skip-checksum", false, "take what comes, unchecked")
	f.StringVar(&o.input.Checksum, "checksum", "", "SHA-256 or SHA-512 that the file must have (firecracker)")
	f.BoolVar(&o.input.NoCache, "no-cache", false, "do not use listings kept from before")
	_ = cmd.RegisterFlagCompletionFunc("source", fixed("kernel.org", "package"))
	_ = cmd.RegisterFlagCompletionFunc("arch", fixed("x86_64", "arm64"))
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Kernel.Pull", func(ctx context.Context, m *api.Client, args []string) (err error) {
		o.input.KernelType, o.input.Version, err = typeVersion(args, o.input.KernelType, o.input.Version)
		if err != nil {
			return err
		}
		return o.run(ctx, m, a.out)
	}))
}

func (o *kernelPullOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	res, err := m.Kernel.Pull(ctx, o.input, api.OnProgress(p.Show))
	took := p.Done()
	if err != nil {
		showBuildLog(out, err)
		return err
	}
	for _, w := range res.Warnings {
		out.Warn(w)
	}
	for _, s := range res.InfoMessages {
		out.Detail(s)
	}
	if out.JSON {
		return out.Object(res)
	}
	out.Detail("pulled in " + render.Took(took))
	return out.Line(res.KernelType + ":" + res.Version)
}

// showBuildLog prints the end of the log of a build that failed.
func showBuildLog(out *render.Output, err error) {
	var failed *mvm.BuildError
	if errors.As(err, &failed) {
		for _, line := range failed.Tail {
			out.Notice("  " + line)
		}
	}
}
