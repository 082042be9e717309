package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestEveryFlagIsUsed looks in all tests that run the mvm command (scripts and those
// with real guests) for every command and every flag of it, but for --format, which is
// one thing for all of them (TestFormat in package render).
func TestEveryFlagIsUsed(t *testing.T) {
	used := map[string]bool{}
	root := Root()
	note := func(words []string) {
		cmd, rest, err := root.Find(arguments(root, words))
		if err != nil || cmd == root {
			return
		}
		used[cmd.CommandPath()] = true
		for _, w := range rest {
			if w == "--" {
				return
			}
			if f := flagIn(cmd, w); f != nil {
				used[cmd.CommandPath()+" --"+f.Name] = true
			}
		}
	}
	err := filepath.WalkDir("../../test", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case strings.HasSuffix(path, ".txtar"):
			return noteScript(path, note)
		case strings.HasSuffix(path, "_test.go"):
			return noteCalls(path, note)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(used) < 100 {
		t.Fatalf("%d commands and flags were found in the tests: they were not read", len(used))
	}
	create, _, err := root.Find([]string{"vm", "create"})
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	walk(root, func(c *cobra.Command) {
		if c.HasSubCommands() || !c.Runnable() || c.Name() == "help" {
			return
		}
		if !used[c.CommandPath()] {
			missing = append(missing, c.CommandPath())
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			name := c.CommandPath() + " --" + f.Name
			if c.Name() == "run" && create.Flags().Lookup(f.Name) != nil { // one function defines it for both
				name = create.CommandPath() + " --" + f.Name
			}
			if !used[name] && f.Name != "help" && f.Value.Type() != "template" {
				missing = append(missing, name)
			}
		})
	})
	slices.Sort(missing)
	if len(missing) > 0 {
		t.Errorf("no test runs these:\n  %s", strings.Join(missing, "\n  "))
	}
}

// flagIn is the flag that a word of a command line gives.
func flagIn(cmd *cobra.Command, word string) *pflag.Flag {
	name, _, _ := strings.Cut(word, "=")
	if long, ok := strings.CutPrefix(name, "--"); ok {
		return cmd.Flags().Lookup(long)
	}
	if short, ok := strings.CutPrefix(name, "-"); ok && short != "" {
		return cmd.Flags().ShorthandLookup(short[:1])
	}
	return nil
}

func noteScript(path string, note func([]string)) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, m := range mvmLine.FindAllStringSubmatch(string(data), -1) {
		note(strings.Fields(m[1]))
	}
	return nil
}

func noteCalls(path string, note func([]string)) error {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		return err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			note(spoken(n.Args))
		case *ast.CompositeLit:
			note(spoken(n.Elts))
		}
		return true
	})
	return nil
}

// spoken are the words of a command line that is written as literals; what is none
// stands for one word.
func spoken(list []ast.Expr) []string {
	var words []string
	for _, e := range list {
		lit, ok := e.(*ast.BasicLit)
		switch {
		case ok && lit.Kind == token.STRING:
			text := strings.Trim(lit.Value, "`\"")
			if text == "mvm" && len(words) == 0 {
				continue
			}
			text = strings.TrimPrefix(text, "mvm ")
			words = append(words, strings.Fields(text)...)
		case len(words) > 0:
			words = append(words, "x")
		}
	}
	return words
}
