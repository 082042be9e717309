package cli

import (
	"slices"
	"strings"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpText is what --help prints: what the command does, how it is called,
// examples, subcommands, and flags without the default values that say nothing.
func helpText(cmd *cobra.Command) string {
	var b strings.Builder
	b.WriteString(strings.TrimSpace(cmd.Long) + "\n\nUsage:\n  " + usageLine(cmd) + "\n")
	if len(cmd.Aliases) > 0 {
		b.WriteString("\nAliases:\n  " + strings.Join(cmd.Aliases, ", ") + "\n")
	}
	b.WriteString("\nExamples:\n" + cmd.Example + "\n")
	var subs [][2]string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			subs = append(subs, [2]string{c.Name(), c.Short})
		}
	}
	section(&b, "Commands", subs)
	cmd.InitDefaultHelpFlag()
	section(&b, "Flags", flagLines(cmd.LocalFlags()))
	if cmd.HasParent() {
		section(&b, "Flags of every command", flagLines(cmd.InheritedFlags()))
	}
	if cmd.HasSubCommands() {
		b.WriteString("\n'" + cmd.CommandPath() + " COMMAND --help' says more about a command.\n")
	}
	return b.String()
}

// usageLine shows how a command is called; cmd.Use has its arguments.
func usageLine(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " COMMAND"
	}
	path, args, _ := strings.Cut(cmd.Use, " ")
	if cmd.HasParent() {
		path = cmd.Parent().CommandPath() + " " + path
	}
	if args != "" {
		args = " " + args
	}
	return path + args + " [flags]"
}

// section prints two columns under a heading, if there is anything in them.
func section(b *strings.Builder, title string, rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	b.WriteString("\n" + title + ":\n")
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	for _, r := range rows {
		b.WriteString("  " + r[0] + strings.Repeat(" ", width-len(r[0])+3) + r[1] + "\n")
	}
}

func flagLines(fs *pflag.FlagSet) [][2]string {
	var rows [][2]string
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "    --" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", --" + f.Name
		}
		rows = append(rows, [2]string{name + placeholder(f), f.Usage})
	})
	return rows
}

// placeholder names the value of a flag.
func placeholder(f *pflag.Flag) string {
	typ := f.Value.Type()
	word, known := map[string]string{"int": "N", "string": "VALUE", "stringSlice": "NAME", "stringArray": "VALUE", "duration": "TIME"}[typ]
	switch {
	case typ == "bool":
		return ""
	case !known:
		word = strings.ToUpper(typ)
	}
	if f.NoOptDefVal != "" {
		return "[=" + word + "]"
	}
	return " " + word
}

// joinWait lets the value of --wait be written as the next word, although it may
// be left out: --wait ssh becomes --wait=ssh.
func joinWait(args []string) []string {
	out := slices.Clone(args)
	for i := 0; i+1 < len(out) && out[i] != "--"; i++ {
		if out[i] == "--wait" && out[i+1] != "" && api.WaitFor(out[i+1]).Validate() == nil {
			out[i] += "=" + out[i+1]
			out = slices.Delete(out, i+1, i+2)
		}
	}
	return out
}
