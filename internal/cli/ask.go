package cli

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// terminal returns stdin when it is a terminal.
func (a *app) terminal() (*os.File, bool) {
	f, ok := a.stdin.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// canAsk reports whether there is somebody to ask: a terminal to read from and
// one to show the question on. Scripts are never asked.
func (a *app) canAsk() bool {
	_, ok := a.terminal()
	return ok && a.out.ErrWidth > 0 && !a.out.JSON
}

// errDeclined is a question answered with no.
var errDeclined = errors.New("nothing was done: the answer was no")

// confirm asks a yes-or-no question. Enter alone gives the preset answer, the
// end of input is a no. It returns nil for yes.
func (a *app) confirm(ctx context.Context, question string, preset bool) error {
	yes, err := a.yes(ctx, question, preset)
	if err == nil && !yes || errors.Is(err, io.EOF) {
		return errDeclined
	}
	return err
}

// yes asks a question to which a no is an answer like any other.
func (a *app) yes(ctx context.Context, question string, preset bool) (bool, error) {
	choice := " [y/N]"
	if preset {
		choice = " [Y/n]"
	}
	line, err := a.answer(ctx, question+choice)
	word := strings.ToLower(line)
	return word == "y" || word == "yes" || word == "" && preset && err == nil, err
}

// answer asks and returns the line that was typed; io.EOF where none was.
func (a *app) answer(ctx context.Context, question string) (string, error) {
	a.out.Ask(question)
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() { // reading a terminal cannot be cancelled
		line, err := bufio.NewReader(a.stdin).ReadString('\n')
		got <- answer{strings.TrimSpace(line), err}
	}()
	select {
	case <-ctx.Done():
		a.out.Notice("")
		return "", ctx.Err()
	case r := <-got:
		if errors.Is(r.err, io.EOF) && r.line != "" {
			r.err = nil // the last line of a file has no end
		}
		return r.line, r.err
	}
}
