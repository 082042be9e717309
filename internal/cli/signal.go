package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// errInterrupted is the cause of the context once the user has asked to end.
var errInterrupted = errors.New("interrupted")

// signals turns the first SIGINT or SIGTERM into the end of ctx, and the second
// into again.
type signals struct {
	ctx   context.Context
	again chan struct{}
	stop  func()
}

func watchSignals() *signals {
	ctx, cancel := context.WithCancelCause(context.Background())
	got := make(chan os.Signal, 2)
	signal.Notify(got, syscall.SIGINT, syscall.SIGTERM)
	s := &signals{ctx: ctx, again: make(chan struct{})}
	s.stop = func() {
		signal.Stop(got)
		cancel(context.Canceled)
	}
	go func() {
		<-got
		cancel(errInterrupted)
		<-got
		close(s.again)
	}()
	return s
}

func interrupted(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), errInterrupted)
}
