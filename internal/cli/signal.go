package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// errInterrupted is the cause of the context once the user has asked to end.
var errInterrupted = errors.New("interrupted")

// signals turns the first SIGINT, SIGTERM or SIGHUP into the end of ctx, and the second
// into again. While a command takes them they go to it instead.
type signals struct {
	ctx   context.Context
	again chan struct{}
	stop  func()

	last   os.Signal // the goroutine of watchSignals alone uses these
	lastAt time.Time

	mu   sync.Mutex
	take func(os.Signal) bool // nil: nobody takes them
}

func watchSignals() *signals {
	ctx, cancel := context.WithCancelCause(context.Background())
	got := make(chan os.Signal, 2)
	signal.Notify(got, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup(1)
		signal.Notify(got, syscall.SIGHUP)
	}
	s := &signals{ctx: ctx, again: make(chan struct{})}
	s.stop = func() {
		signal.Stop(got)
		cancel(context.Canceled)
	}
	go func() {
		s.next(got)
		cancel(errInterrupted)
		s.next(got)
		close(s.again)
	}()
	return s
}

// echo is how soon the same signal again is the same request: timeout(1) and sudo
// send theirs to the process and to its group.
const echo = 100 * time.Millisecond

// next returns with a signal that is for us.
func (s *signals) next(got <-chan os.Signal) {
	for sig := range got {
		again := sig == s.last && time.Since(s.lastAt) < echo
		s.last, s.lastAt = sig, time.Now()
		if again {
			continue
		}
		s.mu.Lock()
		take := s.take
		s.mu.Unlock()
		if take == nil || !take(sig) {
			return
		}
	}
}

// forward has signals go to take, as long as that returns true, until end is
// called. It does nothing where no signals are watched.
func (s *signals) forward(take func(os.Signal) bool) (end func()) {
	if s == nil {
		return func() {}
	}
	set := func(f func(os.Signal) bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.take = f
	}
	set(take)
	return func() { set(nil) }
}

func interrupted(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), errInterrupted)
}
