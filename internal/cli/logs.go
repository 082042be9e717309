package cli

import (
	"context"
	"regexp"
	"strconv"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type logsOptions struct {
	input  api.LogInput
	lines  string
	follow bool
}

func newLogs(a *app) *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs VM",
		Short: "Show what a VM has logged",
		Long: `Show the last lines of what the guest printed on its serial console, or with --os
of what the VMM logged. -f goes on with what comes, also after the VM was restarted,
until Ctrl-C. On a terminal, colours and other control characters are left out or
made visible; otherwise lines are printed as the guest wrote them.`,
		Example: `  mvm logs web
  mvm logs web -n all > boot.log
  mvm logs web --os
  mvm logs web -f -t`,
		Args:              needs(1, 1, "a VM"),
		ValidArgsFunction: a.completeVMs(1),
	}
	f := cmd.Flags()
	f.BoolVar(&o.input.OS, "os", false, "the log of the VMM instead of the guest's console")
	f.StringVarP(&o.lines, "lines", "n", "", "how many of the last lines, or all")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what comes")
	f.BoolVarP(&o.input.Timestamps, "timestamps", "t", false, "the time at which each line came before it, in UTC")
	return a.command(cmd, "Log.Stream", func(ctx context.Context, m *api.Client, args []string) error {
		if cmd.Flags().Changed("lines") {
			n, err := lineCount(o.lines)
			if err != nil {
				return err
			}
			o.input.Lines = &n
		}
		if cmd.Flags().Changed("follow") {
			o.input.Follow = &o.follow
		}
		o.input.Identifier = args[0]
		for line, err := range m.Log.Stream(ctx, o.input) {
			if err != nil {
				if interrupted(ctx) && cancelled(err) {
					return nil // Ctrl-C is how following ends
				}
				return err
			}
			if a.out.Width > 0 {
				line = render.Clean(escapes.ReplaceAllString(line, ""))
			}
			if err := a.out.Raw(line + "\n"); err != nil {
				return err
			}
		}
		return nil
	})
}

func lineCount(s string) (int, error) {
	if s == "all" {
		return -1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, usagef("--lines cannot be %s", mvm.Quote(s)).withHint("write a number of lines, or all")
	}
	return n, nil
}

// escapes are the sequences with which programs colour text and move the cursor
// (ECMA-48, control sequences), and those that set a terminal's title.
var escapes = regexp.MustCompile("\x1b(\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(\x07|\x1b\\\\)|[()][0-9A-B]|[=>78cM])")
