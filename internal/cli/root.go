package cli

import (
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newRoot builds the whole command tree.
func newRoot(a *app) *cobra.Command {
	root := a.group(&cobra.Command{
		Use:   "mvm",
		Short: "Make and run microVMs on this machine",
		Long: `mvm makes and runs microVMs on this machine, with Firecracker where KVM works
and with QEMU elsewhere. It brings kernel, image, network and keys along.`,
		Example: `  mvm init                    set this machine up
  mvm image build debian:12   make an image
  mvm vm create web --wait    make a VM and wait until it answers
  mvm ssh web                 log in`,
		Version: api.Version,
	},
		a.configCommands(), a.cacheCommands(),
		newInit(a), a.hostCommands(), a.kernelCommands(), a.binaryCommands(), a.imageCommands(), a.keyCommands(), a.volumeCommands(), a.networkCommands(),
		a.vmCommands(), a.snapshotCommands(), newRun(a), newExec(a), newSSH(a), newCP(a), newConnect(a), newSSHConfig(a), newForward(a), newConsole(a), newLogs(a), newEvents(a), newVersion(a), newSelfUpdate(a), newCompletion(a),
	)
	a.formatFlags(root)
	root.SetHelpCommand(newHelp(a))
	root.InitDefaultHelpCmd()
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("mvm {{.Version}}\n")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetOut(a.out.Stdout)
	root.SetErr(a.out.Stderr)
	root.SetIn(a.stdin)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		_ = a.out.Raw(helpText(cmd)) // cobra has no way to hand an error on
	})
	root.PersistentFlags().BoolVar(&a.out.Verbose, "verbose", false, "say more: timings and details")
	root.PersistentFlags().BoolVar(&a.out.Debug, "debug", false, "say where errors come from")
	root.Flags().Bool("version", false, "print the version")
	return root
}

// Root returns the command tree for those that write about it; its commands are
// not to be run.
func Root() *cobra.Command {
	none := func(string) string { return "" }
	return newRoot(&app{stdin: strings.NewReader(""), getenv: none, out: render.New(io.Discard, io.Discard, none)})
}

// Arguments turns a command line into what cobra reads: words may be written as
// docker's users do, and a value of --wait may stand apart.
func Arguments(args []string) []string { return arguments(Root(), args) }

func arguments(root *cobra.Command, args []string) []string { return dockerWords(root, joinWait(args)) }

// group makes a command that has only subcommands: without arguments it shows
// its help, with a wrong one it says which are near.
func (a *app) group(cmd *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	cmd.Annotations = map[string]string{annotationAPI: noAPI}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return unknownCommand(cmd, args[0])
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return a.out.Raw(helpText(cmd)) }
	cmd.AddCommand(subs...)
	return cmd
}

func unknownCommand(parent *cobra.Command, typed string) error {
	var names []string
	for _, c := range parent.Commands() {
		if c.IsAvailableCommand() || c.Name() == "help" {
			names = append(append(names, c.Name()), c.Aliases...)
		}
	}
	e := usagef("%q is not a command of %q", typed, parent.CommandPath())
	if near := mvm.Nearest(typed, names); len(near) > 0 {
		return e.withHint("did you mean %s?", alternatives(near))
	}
	return e.withHint("see '%s --help'", parent.CommandPath())
}

// alternatives writes "a", "a or b", "a, b or c".
func alternatives(names []string) string { return enumerate(names, " or ") }

// allOf writes "a", "a and b", "a, b and c".
func allOf(names []string) string { return enumerate(names, " and ") }

func enumerate(names []string, last string) string {
	if len(names) == 1 {
		return names[0]
	}
	return strings.Join(names[:len(names)-1], ", ") + last + names[len(names)-1]
}

// flagError says what is wrong with a flag and which one may be meant.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if rest := cmd.Flags().Args(); cmd.HasSubCommands() && len(rest) > 0 {
		return unknownCommand(cmd, rest[0]) // a flag of a command that does not exist
	}
	help := "see '" + cmd.CommandPath() + " --help'"
	var unknown *pflag.NotExistError
	var value *pflag.InvalidValueError
	var missing *pflag.ValueRequiredError
	switch {
	case errors.As(err, &missing):
		return usagef("--%s needs a value", missing.GetFlag().Name).withHint("%s", help)
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			return usagef("-%s is not a flag of %q", name, cmd.CommandPath()).withHint("%s", help)
		}
		e := usagef("--%s is not a flag of %q", name, cmd.CommandPath())
		if near := mvm.Nearest(name, flagNames(cmd)); len(near) > 0 {
			return e.withHint("did you mean --%s?", strings.Join(near, " or --"))
		}
		return e.withHint("%s", help)
	case errors.As(err, &value):
		return usagef("--%s cannot be %s: %s", value.GetFlag().Name, mvm.Quote(value.GetValue()), reason(value)).withHint("%s", help)
	}
	return usagef("%s", err).withHint("%s", help)
}

// reason is why a value was refused, without the words of package strconv.
func reason(e *pflag.InvalidValueError) string {
	switch e.GetFlag().Value.Type() {
	case "int":
		return "it has to be a whole number"
	case "bool":
		return "it has to be true or false"
	case "duration":
		return "it has to be a time such as 30s or 2m"
	}
	if err := errors.Unwrap(e); err != nil {
		return err.Error()
	}
	return "it is not valid"
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	slices.Sort(names)
	return names
}
