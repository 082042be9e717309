package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// How long one try may take while a guest is waited for, and the pauses between
// tries: short at first, since most guests are up within seconds. A try that took too
// long gives the next one more: on a guest that is only slow it would begin again and
// again with what it cannot end.
const (
	tryLimit = 5 * time.Second
	tryMost  = time.Minute
	pauseMin = 20 * time.Millisecond
	pauseMax = 250 * time.Millisecond
)

// WaitReady logs in to the agent, trying until ctx ends, and returns the open
// client with what the agent says of the guest. A wrong host key or a refused
// login ends it at once: waiting does not mend them.
func WaitReady(ctx context.Context, dial DialFunc, l Login) (*Client, wire.Ready, error) {
	var c *Client
	var r wire.Ready
	err := retry(ctx, "the agent in the guest", func(ctx context.Context) error {
		var err error
		if c, err = Dial(ctx, dial, l); err != nil {
			return err
		}
		if r, err = c.Ready(ctx); err != nil {
			return errors.Join(err, c.Close())
		}
		return nil
	})
	if err != nil {
		return nil, wire.Ready{}, err
	}
	return c, r, nil
}

// WaitTCP waits until an SSH server at addr sends its greeting. Neither an open
// port nor a connection is enough: sshd's socket may listen before sshd runs.
func WaitTCP(ctx context.Context, addr string) error {
	return retry(ctx, "the SSH server at "+addr, func(ctx context.Context) error { return Greets(ctx, addr) })
}

// Greets asks once whether an SSH server at addr sends its greeting.
func Greets(ctx context.Context, addr string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	var greeting [4]byte
	if _, err := io.ReadFull(c, greeting[:]); err != nil {
		return err
	}
	if string(greeting[:]) != "SSH-" {
		return mvm.Errorf(mvm.ErrBroken, "something at %s answers that is no SSH server", addr).
			WithHint("name the port of the SSH server")
	}
	return nil
}

// WaitDial waits until addr accepts a TCP connection.
func WaitDial(ctx context.Context, addr string) error {
	return retry(ctx, addr, func(ctx context.Context) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// WaitPort waits until the guest accepts a TCP connection on one of its own
// addresses, asking through its agent. A guest that reboots meanwhile is asked again.
func WaitPort(ctx context.Context, dial DialFunc, l Login, port int, hosts ...string) error {
	var c *Client
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	return retry(ctx, "port "+strconv.Itoa(port)+" in the guest", func(ctx context.Context) (err error) {
		if c == nil {
			if c, err = Dial(ctx, dial, l); err != nil {
				return err
			}
		}
		for _, host := range hosts {
			var conn net.Conn
			if conn, err = c.DialPort(ctx, host, port); err == nil {
				return conn.Close()
			}
			var refused portError
			if !errors.As(err, &refused) { // the connection is of no use any more
				_ = c.Close()
				c = nil
				return err
			}
		}
		return err
	})
}

func retry(ctx context.Context, what string, try func(context.Context) error) error {
	began, pause, limit := time.Now(), pauseMin, tryLimit
	var last error
	for ctx.Err() == nil {
		tctx, cancel := context.WithTimeout(ctx, limit)
		err := try(tctx)
		if tctx.Err() != nil {
			limit = min(2*limit, tryMost)
		}
		cancel()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, mvm.ErrBroken), errors.Is(err, mvm.ErrPrivilege), errors.Is(err, mvm.ErrInvalid):
			return err
		case ctx.Err() == nil:
			last = err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
		pause = min(pause*2, pauseMax)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	reason := ""
	if last != nil {
		reason = ": " + clean(last.Error())
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%s did not answer within %s%s", what, time.Since(began).Round(100*time.Millisecond), reason).
		WithHint("see 'mvm logs VM' for its boot messages")
}
