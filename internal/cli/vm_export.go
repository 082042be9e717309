package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func newVMExport(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "export VM [PATH]",
		Short: "Describe a VM for another host",
		Long: `Write what a VM is made of, in words that mean the same on another host: types,
versions and names. Without PATH it goes to stdout. It is YAML, or JSON with --json or
where PATH ends in .json. Disks are not part of it: those are 'mvm image import NAME VM'.`,
		Example: "  mvm vm export web\n  mvm vm export web web.yaml",
		Args:    needs(1, 2, "a VM"),
	}
	cmd.ValidArgsFunction = a.vmThenFiles()
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace a file that is there")
	a.jsonFlag(cmd)
	return a.command(cmd, "VM.Export", func(ctx context.Context, m *api.Client, args []string) error {
		cfg, err := m.VM.Export(ctx, api.VMInput{Identifiers: args[:1]})
		if err != nil {
			return err
		}
		path := ""
		if len(args) == 2 {
			path = args[1]
		}
		data, err := describe(cfg, a.out.JSON || strings.HasSuffix(path, ".json"))
		if err != nil {
			return err
		}
		if path == "" || path == "-" {
			return a.out.Raw(string(data))
		}
		return writeNew(path, data, force)
	})
}

// describe writes a description as JSON or YAML.
func describe(cfg *mvm.VMExportConfig, asJSON bool) ([]byte, error) {
	if asJSON {
		data, err := json.MarshalIndent(cfg, "", "  ")
		return append(data, '\n'), err
	}
	return api.MarshalVMExport(cfg)
}

// writeNew writes a file that must not be there, unless force is set.
func writeNew(path string, data []byte, force bool) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o644)
	switch {
	case errors.Is(err, fs.ErrExist):
		return mvm.Errorf(mvm.ErrExists, "%s is there already", path).WithHint("choose another name, or use --force")
	case err != nil:
		return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("name a file in a directory that you may write to")
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func newVMImport(a *app) *cobra.Command {
	var in api.VMImportInput
	var wait string
	cmd := &cobra.Command{
		Use:   "import PATH [NAME]",
		Short: "Make a VM of a description",
		Long: `Make a VM of a description that 'mvm vm export' wrote, here or on another host. What
this host lacks is told at once, with the commands that get it. PATH - is stdin.`,
		Example: "  mvm vm import web.yaml\n  mvm vm import web.yaml copy --wait",
		Args:    needs(1, 2, "a description"),
	}
	cmd.Flags().StringVar(&wait, "wait", "", "wait until the guest is ready or answers ssh (ready, ssh)")
	cmd.Flags().Lookup("wait").NoOptDefVal = string(api.WaitReady)
	cmd.Flags().DurationVar(&in.WaitLimit, "wait-timeout", 0, "how long to wait, such as 90s")
	a.jsonFlag(cmd)
	return undone(a.command(cmd, "VM.Import", func(ctx context.Context, m *api.Client, args []string) error {
		in.Path = args[0]
		if len(args) == 2 {
			in.Name = args[1]
		}
		var err error
		if in.Wait, err = waitFor(wait); err != nil {
			return err
		}
		return importVM(ctx, m, a.out, in)
	}))
}

func importVM(ctx context.Context, m *api.Client, out *render.Output, in api.VMImportInput) error {
	p := out.Progress()
	res, err := m.VM.Import(ctx, in, api.OnProgress(p.Show))
	p.Stop()
	if res == nil || res.VM == nil {
		return err
	}
	if out.JSON {
		return errors.Join(err, out.Object(res))
	}
	return errors.Join(err, out.Line(res.VM.Name))
}
