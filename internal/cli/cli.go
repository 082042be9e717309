// Package cli is the mvm command: a file per command with its options, flags and
// run function. It knows the api and the words of package mvm and nothing below
// them, so that what a command can do, any Go program can do. Printing is in
// package render, and exit.go alone makes messages and exit codes of errors.
package cli

import (
	"context"
	"io"
	"os"
	"sync"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

// app is what all commands of one invocation share.
type app struct {
	stdin  io.Reader
	out    *render.Output
	getenv func(string) string
	sig    *signals // nil in tests

	restoreMu sync.Mutex
	restore   func() // puts the terminal back; nil when nothing was changed
}

// Main runs the command line args (without the program's name) on the process's
// own input and output, and returns the exit code.
func Main(args []string) int {
	a := &app{stdin: os.Stdin, getenv: os.Getenv, out: render.New(os.Stdout, os.Stderr, os.Getenv)}
	a.out.JSON = wantsJSON(args) // also for errors that are found before flags are read
	sig := watchSignals()
	defer sig.stop()
	a.sig = sig

	done := make(chan int, 1)
	go func() {
		root := newRoot(a)
		root.SetArgs(arguments(root, args))
		cmd, err := root.ExecuteContextC(sig.ctx)
		done <- a.report(sig.ctx, cmd, err)
	}()
	select {
	case code := <-done:
		return code
	case <-sig.again: // a second Ctrl-C: the user does not want to wait for the undoing
		a.restoreTerminal()
		a.out.Abandoned("interrupted at once: the next command undoes what was begun")
		return exitInterrupted
	}
}

// wantsJSON looks for --json among the arguments that are mvm's own.
func wantsJSON(args []string) bool {
	for _, s := range args {
		switch s {
		case "--":
			return false
		case "--json", "--json=true":
			return true
		}
	}
	return false
}

// action is what a command does with an open client.
type action func(ctx context.Context, m *api.Client, args []string) error

// command finishes a command that calls operations of the api. uses names
// them, such as "VM.Create"; the first is the one that the command is for.
func (a *app) command(cmd *cobra.Command, uses string, do action) *cobra.Command {
	cmd.Annotations = map[string]string{annotationAPI: uses}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		if a.out.Debug {
			a.out.Detail("debug: mvm " + api.Version + ", cache directory " + m.CacheDir())
		}
		err = do(cmd.Context(), m, args)
		if closeErr := m.Close(); err == nil {
			err = closeErr
		}
		return err
	}
	return cmd
}

// annotationAPI is the key under which a command names its operations, and
// noAPI the value of those that need none.
const (
	annotationAPI = "api"
	noAPI         = "none"
)

func (a *app) open(ctx context.Context) (*api.Client, error) {
	return api.Open(ctx, api.Config{Notice: a.out.Notice})
}

// jsonFlag gives a command --json.
func (a *app) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.out.JSON, "json", a.out.JSON, "print JSON")
	cmd.Flag("json").DefValue = "false"
}

// formatFlags gives --format to every command below root that has --json and no
// --format of its own, which is then one of disks.
func (a *app) formatFlags(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		a.formatFlags(cmd)
		if f := cmd.Flags(); f.Lookup("json") == nil || f.Lookup("format") != nil {
			continue
		}
		cmd.Flags().Var(&formatFlag{a.out}, "format", "print by a Go template, such as '{{.name}}'")
	}
}

// formatFlag turns templates on.
type formatFlag struct{ out *render.Output }

// Set implements pflag.Value.
func (f *formatFlag) Set(text string) error {
	t, err := render.NewFormat(text)
	if err != nil {
		return err
	}
	f.out.Format, f.out.JSON = t, true
	return nil
}

// String implements pflag.Value.
func (f *formatFlag) String() string { return "" }

// Type implements pflag.Value.
func (f *formatFlag) Type() string { return "template" }
