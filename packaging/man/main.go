// Command man writes mvm's manual pages, one for each command, into a directory:
// mvm.1.gz, mvm-vm-create.1.gz, …
//
//	go run ./packaging/man DIR
//
// The date in them is $SOURCE_DATE_EPOCH, so that they can be made again to the byte
// (https://reproducible-builds.org/specs/source-date-epoch/).
package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/mvmctl/mvm/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man DIR")
		os.Exit(2)
	}
	if err := write(cli.Root(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

func write(root *cobra.Command, dir string) error {
	var epoch int64
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH is no number: %w", err)
		}
		epoch = n
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	date := time.Unix(epoch, 0).UTC()
	return pages(root, func(cmd *cobra.Command) error {
		cmd.DisableAutoGenTag = true // it has today's date
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1.gz"
		return page(cmd, filepath.Join(dir, name), &doc.GenManHeader{Title: strings.ToUpper(strings.TrimSuffix(name, ".1.gz")), Section: "1", Date: &date, Source: "mvm", Manual: "mvm"})
	})
}

func pages(cmd *cobra.Command, f func(*cobra.Command) error) error {
	if err := f(cmd); err != nil {
		return err
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			if err := pages(sub, f); err != nil {
				return err
			}
		}
	}
	return nil
}

func page(cmd *cobra.Command, path string, header *doc.GenManHeader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // closed below, where it counts
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return err
	}
	if err := doc.GenMan(cmd, header, io.Writer(z)); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return f.Close()
}
