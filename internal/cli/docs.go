package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// Markdown returns the pages of the command reference by file name: one for each
// command of the first level, with what is below it, and an index.
func Markdown() map[string]string {
	root := Root()
	pages := map[string]string{}
	var index strings.Builder
	index.WriteString("# Commands\n\n" + root.Long + "\n\n| command | what it does |\n| --- | --- |\n")
	for _, cmd := range root.Commands() {
		if !cmd.IsAvailableCommand() || cmd.Name() == "help" {
			continue
		}
		name := cmd.Name() + ".md"
		index.WriteString("| [mvm " + cmd.Name() + "](" + name + ") | " + cmd.Short + " |\n")
		var b strings.Builder
		b.WriteString("# mvm " + cmd.Name() + "\n\n")
		page(&b, cmd, "##")
		pages[name] = b.String()
	}
	index.WriteString("\nExit codes: 0 when it worked, 1 when an operation failed, 2 when the command line makes no\n" +
		"sense, 130 when it was interrupted. `mvm exec`, `ssh` and `run` exit with the status of the\n" +
		"command in the guest.\n\n")
	index.WriteString("Flags of every command:\n\n")
	flagTable(&index, flagLines(root.PersistentFlags()))
	pages["README.md"] = index.String()
	return pages
}

// page writes about a command and, below it, about its subcommands.
func page(b *strings.Builder, cmd *cobra.Command, level string) {
	b.WriteString(strings.TrimSpace(cmd.Long) + "\n\n```\n" + usageLine(cmd) + "\n```\n\n")
	if len(cmd.Aliases) > 0 {
		b.WriteString("Also: `" + strings.Join(cmd.Aliases, "`, `") + "`\n\n")
	}
	if rows := flagLines(cmd.LocalNonPersistentFlags()); len(rows) > 0 {
		flagTable(b, rows)
	}
	b.WriteString("```console\n" + dedent(cmd.Example) + "\n```\n\n")
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			b.WriteString(level + " " + sub.CommandPath() + "\n\n")
			page(b, sub, level+"#")
		}
	}
}

func flagTable(b *strings.Builder, rows [][2]string) {
	b.WriteString("| flag | |\n| --- | --- |\n")
	for _, r := range rows {
		b.WriteString("| `" + strings.TrimSpace(r[0]) + "` | " + strings.ReplaceAll(r[1], "|", `\|`) + " |\n")
	}
	b.WriteByte('\n')
}

// dedent takes the two spaces off that examples begin with.
func dedent(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
