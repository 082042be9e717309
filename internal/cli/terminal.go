package cli

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"golang.org/x/term"
)

// attachTerminal gives a session the terminal on stdin, if there is one: its
// size and its changes, and raw mode, so that every key reaches the guest. end
// gives the terminal back; so does restoreTerminal, whatever happens.
func (a *app) attachTerminal(s *api.StreamIO) (end func(), err error) {
	tty, ok := a.terminal()
	if !ok || a.out.Width == 0 {
		return func() {}, nil
	}
	fd := int(tty.Fd())
	size := func() api.TerminalSize {
		cols, rows, err := term.GetSize(fd)
		if err != nil || cols <= 0 || rows <= 0 {
			return api.TerminalSize{Rows: 24, Cols: 80}
		}
		return api.TerminalSize{Rows: rows, Cols: cols}
	}
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot set up the terminal: %w", err).WithHint("run a command with -c instead")
	}
	a.onRestore(func() { _ = term.Restore(fd, before) })

	first := size()
	changes := make(chan api.TerminalSize, 1)
	s.Terminal, s.Resize = &first, changes
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, syscall.SIGWINCH)
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-winch:
				latest(changes, size())
			}
		}
	})
	return func() {
		signal.Stop(winch)
		close(stop)
		done.Wait()
		a.restoreTerminal()
	}, nil
}

// latest puts v into a channel with one place, instead of what waits there: only
// the last size counts.
func latest[T any](ch chan T, v T) {
	select {
	case <-ch:
	default:
	}
	ch <- v
}

// onRestore sets what puts the terminal back.
func (a *app) onRestore(f func()) {
	a.restoreMu.Lock()
	defer a.restoreMu.Unlock()
	a.restore = f
}

// restoreTerminal puts the terminal back, once. It may be called at any time
// and from any goroutine.
func (a *app) restoreTerminal() {
	a.restoreMu.Lock()
	defer a.restoreMu.Unlock()
	if a.restore != nil {
		a.restore()
		a.restore = nil
	}
}
