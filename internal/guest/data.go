package guest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// UseData has copies move their data by streams that dial opens to the agent's
// data port (wire.DataPort). An agent that has none is asked once.
func (c *Client) UseData(dial DialFunc) {
	c.dataMu.Lock()
	defer c.dataMu.Unlock()
	c.data = dial
}

// openData opens a stream for data; nil where the agent takes none. The stream ends
// with ctx.
func (c *Client) openData(ctx context.Context) (conn net.Conn, ticket string) {
	c.dataMu.Lock()
	dial := c.data
	c.dataMu.Unlock()
	if dial == nil || !c.agent {
		return nil, ""
	}
	limited, cancel := context.WithTimeout(ctx, DialLimit)
	defer cancel()
	conn, ticket, err := handTicket(limited, dial)
	if err != nil {
		c.UseData(nil)
		return nil, ""
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, ticket
}

func handTicket(ctx context.Context, dial DialFunc) (net.Conn, string, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	var raw [wire.TicketLen / 2]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	ticket := hex.EncodeToString(raw[:])
	var answer [len(wire.DataOK)]byte
	if err = wire.WriteTicket(conn, ticket); err == nil {
		_, err = io.ReadFull(conn, answer[:])
	}
	if err == nil && string(answer[:]) != wire.DataOK {
		err = errors.New("the agent does not take the ticket")
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, "", errors.Join(err, conn.Close())
	}
	return conn, ticket, nil
}

// move runs a command of the agent's that packs or unpacks, with its data on a stream
// of its own where there is one.
func (c *Client) move(ctx context.Context, cmd Cmd) (Status, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, ticket := c.openData(ctx)
	if conn == nil {
		return c.Exec(ctx, cmd)
	}
	defer func() { _ = conn.Close() }()
	in, out := cmd.Stdin, cmd.Stdout
	cmd.Stdin, cmd.Stdout, cmd.data = nil, nil, ticket
	if in != nil {
		go func() {
			// The guest knows by what the stream says whether it was whole.
			_, _ = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{in}, make([]byte, dataBuffer))
			if half, ok := conn.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			} else {
				_ = conn.Close()
			}
		}()
	}
	if out == nil {
		return c.Exec(ctx, cmd)
	}
	read := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{writer{out}}, struct{ io.Reader }{conn}, make([]byte, dataBuffer))
		var w *writeError
		if !errors.As(err, &w) {
			err = nil // of reading: what is missing the receiver notices
		} else {
			err = w.error
			cancel() // nobody takes it any more
		}
		read <- err
	}()
	st, err := c.Exec(ctx, cmd)
	if err != nil || st.Code != 0 {
		_ = conn.Close()
	}
	if wErr := <-read; wErr != nil {
		return st, mvm.Errorf(mvm.ErrUnavailable, "write the command's output: %w", wErr).WithHint("see whether the disk is full, or the program that reads it has ended")
	}
	return st, err
}

// dataBuffer is how much of a stream is moved at once.
const dataBuffer = 256 << 10

// writer marks the errors of writing.
type writer struct{ io.Writer }

type writeError struct{ error }

func (w writer) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		err = &writeError{err}
	}
	return n, err
}
