// Command completions writes mvm's completion scripts into a directory, under the
// names that the shells look for.
//
//	go run ./packaging/completions DIR
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: completions DIR")
		os.Exit(2)
	}
	dir := os.Args[1]
	err := os.MkdirAll(dir, 0o755)
	for name, write := range map[string]func(string) error{
		"mvm.bash": func(path string) error { return cli.Root().GenBashCompletionFileV2(path, true) },
		"_mvm":     func(path string) error { return cli.Root().GenZshCompletionFile(path) },
		"mvm.fish": func(path string) error { return cli.Root().GenFishCompletionFile(path, true) },
	} {
		err = errors.Join(err, write(filepath.Join(dir, name)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "completions:", err)
		os.Exit(1)
	}
}
