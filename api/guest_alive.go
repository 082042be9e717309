package api

import (
	"context"
	"errors"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/vmm"
)

// A command in a guest may be silent for as long as it likes. Its agent, or its SSH
// server, may not: it is asked every aliveEvery, and given up when no answer has come
// for aliveLimit, which is far more than a guest takes that is only slow.
const (
	aliveEvery = 30 * time.Second
	aliveLimit = 5 * time.Minute
)

// whileItAnswers returns a context that ends when the guest on the other side of a
// connection answers nothing any more, or its VMM has ended; its cause is then an
// mvm.ErrUnavailable. A VM that is paused is waited for.
func (c *core) whileItAnswers(ctx context.Context, vm *mvm.VMInstanceItem, client *guest.Client) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go c.untilSilent(ctx, vm, client, cancel)
	if !client.Agent() { // the channel to an agent ends with the VMM, a network does not
		go c.untilEnded(ctx, vm, cancel)
	}
	return ctx, func() { cancel(nil) }
}

func (c *core) untilEnded(ctx context.Context, vm *mvm.VMInstanceItem, cancel context.CancelCauseFunc) {
	reason := "its VMM is gone"
	m, err := c.attach(ctx, vm)
	if err == nil {
		defer func() { _ = m.Close() }()
		var exit vmm.Exit
		exit, err = m.Wait(ctx)
		reason = firstOf(exit.Reason, reason)
	}
	if err == nil || errors.Is(err, vmm.ErrGone) {
		cancel(mvm.Errorf(mvm.ErrUnavailable, "the VM ended meanwhile: %s", reason).WithHint("start it with 'mvm vm start %s'", vm.Name))
	}
}

func (c *core) untilSilent(ctx context.Context, vm *mvm.VMInstanceItem, client *guest.Client, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	var answered chan error // nil while nothing is asked
	var silent time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-answered:
			if err != nil {
				return // the connection is lost, which who uses it sees
			}
			answered, silent = nil, 0
		case <-tick.C:
			if answered == nil {
				asked := make(chan error, 1)
				go func() { asked <- client.Answers() }()
				answered = asked
				continue
			}
			if c.isPaused(ctx, vm.ID) {
				continue
			}
			if silent += aliveEvery; silent >= aliveLimit {
				cancel(mvm.Errorf(mvm.ErrUnavailable, "the guest has answered nothing for %s; what runs in it may go on", aliveLimit).
					WithHint("see 'mvm logs %s'; 'mvm vm reboot --force %s' starts it anew", vm.Name, vm.Name))
				return
			}
		}
	}
}

// isPaused reports whether a VM is paused by now.
func (c *core) isPaused(ctx context.Context, id string) bool {
	vm, err := c.st.GetVM(ctx, id)
	return err == nil && vm.Status == mvm.StatusPaused
}

// causeOf replaces the error of a context by the reason for which it ended.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && err == ctx.Err() { //nolint:errorlint // that very error
		return cause
	}
	return err
}
