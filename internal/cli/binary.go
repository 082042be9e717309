package cli

import (
	"context"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) binaryCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "binary",
		Aliases: []string{"bin"},
		Short:   "Manage VMM binaries",
		Long: `Manage the Firecracker releases in the cache. A binary is selected by type:version, by
id prefix, or by its type, which means the newest. QEMU comes with the distribution and
is only listed; 'mvm host status' says which of the two is used here.`,
		Example: "  mvm binary pull firecracker\n  mvm binary ls",
	}, newBinaryPull(a), newBinaryList(a), newBinaryDefault(a), newBinaryRemove(a), newBinaryInspect(a))
}

// binaryRef is what selects a binary.
func binaryRef(b *mvm.BinaryItem) string { return b.Name + ":" + b.Version }

// completeBinaries offers the binaries that can be selected.
func (a *app) completeBinaries(most int) completer {
	return a.complete(most, func(ctx context.Context, m *api.Client) ([]string, error) {
		items, err := m.Binary.ListAll(ctx)
		var refs []string
		for _, b := range items {
			refs = append(refs, binaryRef(b))
		}
		return refs, err
	})
}

func newBinaryPull(a *app) *cobra.Command {
	var in api.BinaryPullInput
	cmd := &cobra.Command{
		Use:   "pull [TYPE[:VERSION]]",
		Short: "Download a Firecracker release",
		Long: `Download a Firecracker release with its jailer, check it against its published
checksum, ask both for their version, and register them beside those that are there.
Needs the internet, or MVM_ASSET_MIRROR.

With --git-ref they are built instead, by git and cargo, from the repository in the
setting defaults.binary repository.`,
		Example: `  mvm binary pull firecracker
  mvm binary pull firecracker:1.16.1 --default
  mvm binary pull --git-ref v1.16.1`,
		Args:              needs(0, 1, ""),
		ValidArgsFunction: fixed("firecracker"),
	}
	f := cmd.Flags()
	f.StringVar(&in.Version, "version", "", "version; the one in the settings when not given")
	f.StringVar(&in.GitRef, "git-ref", "", "tag, branch or commit to build instead")
	f.BoolVarP(&in.SetDefault, "default", "d", false, "make it the default")
	f.BoolVarP(&in.Force, "force", "f", false, "get it again when it is there")
	f.BoolVar(&in.SkipChecksum, "skip-checksum", false, "take what comes, unchecked")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "Binary.Pull", func(ctx context.Context, m *api.Client, args []string) (err error) {
		if in.Name, in.Version, err = typeVersion(args, "", in.Version); err != nil && len(args) > 0 {
			return err
		}
		p := a.out.Progress()
		items, err := m.Binary.Pull(ctx, in, api.OnProgress(p.Show))
		p.Done()
		if err != nil {
			showBuildLog(a.out, err)
			return err
		}
		for _, b := range items {
			if b.Verification == mvm.VerifiedNot {
				a.out.Warn("nothing says that " + binaryRef(b) + " is what its authors have published: its checksum was skipped")
				break
			}
		}
		return printBinaries(a.out, items, false)
	}))
}

func newBinaryList(a *app) *cobra.Command {
	var long, remote bool
	var in api.BinaryRemoteInput
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List VMM binaries",
		Long: `List the VMM binaries in the cache and the host's QEMU, or with --remote the releases
of Firecracker that can be pulled. What GitHub told is kept for a while
(defaults.binary remote_list_cache_ttl).`,
		Example: "  mvm binary ls\n  mvm binary ls --json\n  mvm binary ls --remote --limit 10",
		Args:    noArgs,
	}
	f := cmd.Flags()
	f.BoolVar(&long, "long", false, "also ids and paths, or where it is downloaded from")
	f.BoolVarP(&remote, "remote", "r", false, "what can be pulled")
	f.IntVar(&in.Limit, "limit", 0, "how many versions (with --remote); that of the settings when not given")
	f.BoolVar(&in.NoCache, "no-cache", false, "ask upstream now (with --remote)")
	a.jsonFlag(cmd)
	return a.command(cmd, "Binary.ListAll Binary.ListRemote", func(ctx context.Context, m *api.Client, _ []string) error {
		if remote {
			p := a.out.Progress()
			versions, err := m.Binary.ListRemote(ctx, in, api.OnProgress(p.Show))
			p.Done()
			if err != nil {
				return err
			}
			return printVersions(a.out, versions, long)
		}
		items, err := m.Binary.ListAll(ctx)
		if err != nil {
			return err
		}
		return printBinaries(a.out, items, long)
	})
}

func newBinaryDefault(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "default BINARY",
		Short:             "Make a binary the default",
		Long:              "Make a binary the one that new VMs run on when none is named; with a Firecracker goes its\njailer.",
		Example:           "  mvm binary default firecracker:1.16.1",
		Args:              needs(1, 1, "a binary"),
		ValidArgsFunction: a.completeBinaries(1),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Binary.SetDefault", func(ctx context.Context, m *api.Client, args []string) error {
		item, err := m.Binary.SetDefault(ctx, api.BinaryInput{Identifiers: args})
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(item)
		}
		return a.out.Line(binaryRef(item))
	})
}

func newBinaryRemove(a *app) *cobra.Command {
	var force bool
	var version string
	cmd := &cobra.Command{
		Use:     "rm {BINARY... | --version VERSION}",
		Aliases: []string{"remove", "delete", "del"},
		Short:   "Remove binaries",
		Long: `Remove binaries from the cache; with --version Firecracker and jailer of that version.
One that VMs use is kept unless --force is given; what runs goes on running.`,
		Example: "  mvm binary rm firecracker:1.15.0\n  mvm binary rm --version 1.15.0",
		Args: func(cmd *cobra.Command, args []string) error {
			if version != "" && len(args) > 0 {
				return usagef("a binary and --version exclude each other").withHint("leave one out")
			}
			if version != "" {
				return nil
			}
			return needs(1, -1, "a binary, or --version")(cmd, args)
		},
		ValidArgsFunction: a.completeBinaries(0),
	}
	f := cmd.Flags()
	f.BoolVarP(&force, "force", "f", false, "also when VMs use it")
	f.StringVar(&version, "version", "", "remove both programs of a version")
	a.jsonFlag(cmd)
	return a.command(cmd, "Binary.Remove Binary.RemoveByVersion", func(ctx context.Context, m *api.Client, args []string) error {
		if version != "" {
			batch, err := m.Binary.RemoveByVersion(ctx, version, force)
			return printBatch(a.out, batch, binaryRef, err)
		}
		batch, err := m.Binary.Remove(ctx, api.BinaryInput{Identifiers: args}, force)
		return printBatch(a.out, batch, binaryRef, err)
	})
}

// binaryInspect is what inspect shows of a binary.
type binaryInspect struct {
	Binary *mvm.BinaryItem `json:"binary"`
}

func newBinaryInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect BINARY...",
		Short: "Show all about binaries",
		Long: `Show all that is known about binaries: where they came from and how that was checked.
With --json one binary gives an object, several give an array.`,
		Example:           "  mvm binary inspect firecracker --json",
		Args:              needs(1, -1, "a binary"),
		ValidArgsFunction: a.completeBinaries(0),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Binary.Get", func(ctx context.Context, m *api.Client, args []string) error {
		return inspect(a.out, args, func(id string) (string, binaryInspect, error) {
			items, err := m.Binary.Get(ctx, api.BinaryInput{Identifiers: []string{id}})
			if err != nil {
				return "", binaryInspect{}, err
			}
			return "Binary: " + binaryRef(items[0]), binaryInspect{items[0]}, nil
		})
	})
}

func printBinaries(out *render.Output, items []*mvm.BinaryItem, long bool) error {
	if out.JSON {
		return render.List(out, items)
	}
	t := render.Table{Columns: []render.Column{{Head: "BINARY", Keep: true}, {Head: "DEFAULT"}, {Head: "AGE", Right: true, Keep: true}}}
	if long {
		t.Columns = append(t.Columns, render.Column{Head: "ID", Keep: true}, render.Column{Head: "PATH"})
	}
	for _, b := range items {
		row := []render.Cell{{Text: binaryRef(b)}, mark(b.IsDefault, b.IsPresent), {Text: out.Age(b.CreatedAt)}}
		if long {
			row = append(row, render.Text(render.ShortID(b.ID), b.Path)...)
		}
		t.Rows = append(t.Rows, row)
	}
	return out.Table(t)
}
