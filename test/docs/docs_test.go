// Package docs holds the documentation against the program: every command in it is
// one that mvm has, every message in it is one that mvm says, every link leads
// somewhere. Package e2e runs the commands that are marked for that.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/mvmctl/mvm/internal/cli"
)

const root = "../.."

// pages returns the pages of the documentation, by path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	add := func(path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(filepath.ToSlash(path), root+"/")] = string(data)
	}
	add(root + "/README.md")
	add(root + "/CONTRIBUTING.md")
	err := filepath.WalkDir(root+"/docs", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			add(path)
		}
		return err
	})
	if err != nil || len(all) < 15 {
		t.Fatalf("%d pages: %v", len(all), err)
	}
	return all
}

var (
	block  = regexp.MustCompile("(?ms)^```(console|sh|bash)?\n(.*?)^```")
	inline = regexp.MustCompile("`((?:sudo )?mvm [^`]*)`")
	call   = regexp.MustCompile(`(?:^|[;&|(] ?|\$\(|sudo )mvm( [^|;&()<>#]*)`)
	link   = regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`)
)

// commands are the calls of mvm in a page.
func commands(page string) []string {
	var all []string
	add := func(line string) {
		for _, m := range call.FindAllStringSubmatch(line, -1) {
			all = append(all, strings.TrimSpace(m[1]))
		}
	}
	for _, b := range block.FindAllStringSubmatch(page, -1) {
		for line := range strings.Lines(b[2]) {
			line = strings.TrimSpace(line)
			if b[1] == "console" {
				line = strings.TrimPrefix(strings.TrimPrefix(line, "# "), "$ ")
			}
			add(line)
		}
	}
	for _, m := range inline.FindAllStringSubmatch(page, -1) {
		add(m[1])
	}
	return all
}

// TestCommands has cobra read every command, without running any.
func TestCommands(t *testing.T) {
	read := 0
	for name, page := range pages(t) {
		for _, line := range commands(page) {
			if strings.ContainsAny(line, "…[{") || strings.Contains(line, "COMMAND") { // a form, not a command
				continue
			}
			read++
			if why := unknown(words(line)); why != "" {
				t.Errorf("%s: mvm %s: %s", name, line, why)
			}
		}
	}
	if read < 150 {
		t.Errorf("%d commands were found in the documentation: they were not read", read)
	}
}

// unknown says why a command line is none of mvm's.
func unknown(args []string) string {
	tree := cli.Root()
	args = cli.Arguments(args)
	cmd, rest, err := tree.Find(args)
	if err != nil {
		return err.Error()
	}
	if len(args) == 0 || args[0] == "--help" || args[0] == "--version" {
		return ""
	}
	if cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return "it is no command"
	}
	flags := cmd.Flags()
	flags.AddFlagSet(cmd.InheritedFlags())
	cmd.InitDefaultHelpFlag()
	var names []string
	for _, s := range rest {
		if s == "--" {
			break
		}
		names = append(names, s)
	}
	if err := flags.Parse(names); err != nil {
		return err.Error()
	}
	return arguments(cmd, flags.Args(), len(names) < len(rest))
}

// arguments has a command check its arguments, where all of them are there: a
// mention such as `mvm vm rm` means the command, not a call of it.
func arguments(cmd *cobra.Command, args []string, more bool) string {
	if cmd.Args == nil || more || len(args) == 0 {
		return ""
	}
	if err := cmd.Args(cmd, args); err != nil {
		return err.Error()
	}
	return ""
}

// words splits a line as a shell does.
func words(line string) []string {
	var out []string
	var word strings.Builder
	quote, open := rune(0), false
	for _, c := range line {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
				continue
			}
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, open = c, true
		case c == ' ':
			if open || word.Len() > 0 {
				out = append(out, word.String())
			}
			word.Reset()
			open = false
		default:
			word.WriteRune(c)
		}
	}
	if open || word.Len() > 0 {
		out = append(out, word.String())
	}
	return out
}

// TestLinks follows every link to a file of ours.
func TestLinks(t *testing.T) {
	for name, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(page, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", name, m[1])
			}
		}
	}
}

var message = regexp.MustCompile("(?m)^\\| (`[^|]*`) \\|")

// TestMessages looks in the source for what the page on troubleshooting quotes.
func TestMessages(t *testing.T) {
	source := sources(t)
	found := 0
	for _, row := range message.FindAllStringSubmatch(pages(t)["docs/troubleshooting.md"], -1) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			if found++; !strings.Contains(source, m[1]) {
				t.Errorf("mvm never says %q", m[1])
			}
		}
	}
	if found < 12 {
		t.Errorf("%d messages were found: the page was not read", found)
	}
}

func sources(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{"api", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			b.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}
