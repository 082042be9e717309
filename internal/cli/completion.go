package cli

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func newCompletion(a *app) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion {bash|zsh|fish}",
		Short: "Print a completion script for a shell",
		Long: `Print a script that teaches a shell to complete mvm's commands, flags and the
names of VMs, images, kernels and networks. Needs no set-up.`,
		Example: `  source <(mvm completion bash)
  mvm completion zsh  > "${fpath[1]}/_mvm"
  mvm completion fish > ~/.config/fish/completions/mvm.fish`,
		Annotations: map[string]string{annotationAPI: noAPI},
		ValidArgs:   shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := needs(1, 1, "a shell: bash, zsh or fish")(cmd, args); err != nil {
				return err
			}
			if !slices.Contains(shells, args[0]) {
				return usagef("there is no completion for %s", mvm.Quote(args[0])).withHint("use bash, zsh or fish")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var b strings.Builder
			err := map[string]func() error{
				"bash": func() error { return cmd.Root().GenBashCompletionV2(&b, true) },
				"zsh":  func() error { return cmd.Root().GenZshCompletion(&b) },
				"fish": func() error { return cmd.Root().GenFishCompletion(&b, true) },
			}[args[0]]()
			if err != nil {
				return err
			}
			return a.out.Raw(b.String())
		},
	}
}

// completer is the shape of cobra's dynamic completions.
type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete offers the names that list gives, without those that stand there
// already, for at most most arguments (0: any number). Completion never fails and
// never sets anything up: without a database there is nothing to offer.
func (a *app) complete(most int, list func(context.Context, *api.Client) ([]string, error)) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp
		if most > 0 && len(args) >= most {
			return nil, directive
		}
		ctx := cmd.Context()
		m, err := api.Open(ctx, api.Config{})
		if err != nil {
			return nil, directive
		}
		defer m.Close() //nolint:errcheck // nothing was written
		if entries, err := filepath.Glob(filepath.Join(m.CacheDir(), "*.db")); err != nil || len(entries) == 0 {
			return nil, directive
		}
		names, err := list(ctx, m)
		if err != nil {
			return nil, directive
		}
		used := map[string]bool{}
		for _, s := range args {
			used[s] = true
		}
		var out []string
		for _, n := range names {
			name, _, _ := strings.Cut(n, "\t")
			if strings.HasPrefix(name, typed) && !used[name] {
				out = append(out, n)
			}
		}
		return out, directive
	}
}

func (a *app) completeVMs(most int) completer {
	return a.complete(most, func(ctx context.Context, m *api.Client) ([]string, error) {
		vms, err := m.VM.ListAll(ctx)
		return named(vms, func(v *mvm.VMInstanceItem) string { return v.Name + "\t" + string(v.Status) }), err
	})
}

func (a *app) completeKernels(most int) completer {
	return a.complete(most, func(ctx context.Context, m *api.Client) ([]string, error) {
		kernels, err := m.Kernel.ListAll(ctx)
		return named(kernels, kernelRef), err
	})
}

func (a *app) completeImages(most int) completer {
	return a.complete(most, func(ctx context.Context, m *api.Client) ([]string, error) {
		images, err := m.Image.ListAll(ctx)
		return named(images, imageRef), err
	})
}

func (a *app) completeNetworks(most int) completer {
	return a.complete(most, func(ctx context.Context, m *api.Client) ([]string, error) {
		networks, err := m.Network.ListAll(ctx)
		return named(networks, func(n *mvm.NetworkItem) string { return n.Name + "\t" + n.Subnet }), err
	})
}

func (a *app) completeKeys() completer {
	return a.complete(0, func(ctx context.Context, m *api.Client) ([]string, error) {
		keys, err := m.Key.ListAll(ctx)
		return named(keys, func(k *mvm.SSHKeyItem) string { return k.Name }), err
	})
}

// named takes the names out of items.
func named[T any](items []T, name func(T) string) []string {
	out := make([]string, 0, len(items))
	for _, item := range items {
		out = append(out, name(item))
	}
	return out
}

// fixed offers the same words always.
func fixed(words ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}
