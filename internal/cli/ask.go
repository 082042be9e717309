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
	choice := " [y/N]"
	if preset {
		choice = " [Y/n]"
	}
	a.out.Ask(question + choice)
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() { // reading a terminal cannot be cancelled
		line, err := bufio.NewReader(a.stdin).ReadString('\n')
		got <- answer{line, err}
	}()
	select {
	case <-ctx.Done():
		a.out.Notice("")
		return ctx.Err()
	case r := <-got:
		if r.err != nil && !errors.Is(r.err, io.EOF) {
			return r.err
		}
		word := strings.ToLower(strings.TrimSpace(r.line))
		yes := word == "y" || word == "yes" || word == "" && preset && r.err == nil
		if !yes {
			return errDeclined
		}
		return nil
	}
}
