package cli

import "github.com/spf13/cobra"

// newHelp replaces cobra's help command, which takes an unknown topic for success.
func newHelp(a *app) *cobra.Command {
	return &cobra.Command{
		Use:         "help [COMMAND...]",
		Short:       "Help about a command",
		Long:        "Show what a command does, with its flags and examples. The same as COMMAND --help.",
		Example:     "  mvm help vm create",
		Annotations: map[string]string{annotationAPI: noAPI},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			at, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, c := range at.Commands() {
				if c.IsAvailableCommand() {
					names = append(names, c.Name()+"\t"+c.Short)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			at := cmd.Root()
			for _, name := range args {
				sub := child(at, name)
				if sub == nil {
					return unknownCommand(at, name)
				}
				at = sub
			}
			return a.out.Raw(helpText(at))
		},
	}
}

func child(parent *cobra.Command, name string) *cobra.Command {
	for _, c := range parent.Commands() {
		if c.Name() == name || c.HasAlias(name) {
			return c
		}
	}
	return nil
}
