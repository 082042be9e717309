package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

// The exit codes. A command that runs something in a guest exits with the
// status of that.
const (
	exitFailed      = 1   // an operation failed
	exitUsage       = 2   // the command line makes no sense
	exitInterrupted = 130 // 128 + SIGINT, as shells say it
)

// usageError is a command line that makes no sense.
type usageError struct{ message, hint string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) *usageError {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

func (e *usageError) withHint(format string, args ...any) *usageError {
	e.hint = fmt.Sprintf(format, args...)
	return e
}

// guestExit is the exit status of a command in a guest that was not 0.
type guestExit int

func (e guestExit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// report prints what err has to say and returns the exit code. It is the only
// place where errors become messages.
func (a *app) report(ctx context.Context, cmd *cobra.Command, err error) int {
	a.restoreTerminal()
	var guest guestExit
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &guest):
		return int(guest)
	case errors.As(err, &usage):
		a.out.Failure(render.Failure{Kind: "usage", Message: usage.message, Hint: usage.hint})
		return exitUsage
	}
	stopped := interrupted(ctx)
	for _, e := range leaves(err) {
		if stopped && cancelled(e) {
			continue // the user knows
		}
		a.out.Failure(failureOf(e))
		a.trace(e)
	}
	if stopped {
		a.out.Interrupted(render.Failure{Kind: "interrupted", Message: interruptedMessage(cmd, err)})
		return exitInterrupted
	}
	return exitFailed
}

// interruptedMessage promises that work was undone only where there was some and
// undoing it did not fail.
func interruptedMessage(cmd *cobra.Command, err error) string {
	if cmd.Annotations[annotationUndo] != "" && !errors.Is(err, mvm.ErrBroken) {
		return "interrupted: what was begun has been undone"
	}
	return "interrupted"
}

// annotationUndo marks commands whose operations take back what they began.
const annotationUndo = "undo"

func undone(cmd *cobra.Command) *cobra.Command {
	cmd.Annotations[annotationUndo] = "yes"
	return cmd
}

func cancelled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted)
}

// leaves takes joined errors apart. An *mvm.Error stays whole, for its parts
// are its kind and its cause.
func leaves(err error) []error {
	if _, whole := err.(*mvm.Error); whole { //nolint:errorlint // the shape of this very error is asked for
		return []error{err}
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	if strings.Count(err.Error(), "\n") == 0 && len(joined.Unwrap()) > 1 {
		return []error{err} // fmt.Errorf with several %w: one sentence
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, leaves(e)...)
	}
	return out
}

// failureOf makes one error ready to be shown.
func failureOf(err error) render.Failure {
	f := render.Failure{Kind: string(mvm.KindOf(err)), Message: oneLine(err.Error()), Hint: mvm.HintOf(err)}
	var ask *mvm.NeedsInteraction
	if errors.As(err, &ask) && len(ask.Command) > 0 {
		command := strings.Join(ask.Command, " ")
		f.Message = strings.Replace(f.Message, ask.Error(), ask.What, 1)
		f.Hint = "run: " + command
	}
	return f
}

func oneLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Join(lines, "; ")
}

// trace says with --debug how an error is built.
func (a *app) trace(err error) {
	if !a.out.Debug {
		return
	}
	for depth := 1; err != nil; depth++ {
		a.out.Detail(fmt.Sprintf("debug: %s%T: %s", strings.Repeat("  ", depth-1), err, oneLine(err.Error())))
		var e *mvm.Error
		if errors.As(err, &e) && error(e) == err { //nolint:errorlint // identity is meant
			err = e.Err
			continue
		}
		err = errors.Unwrap(err)
	}
}
