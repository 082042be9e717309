package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// handshakeTimeout bounds the wait for the guest's answer. Firecracker gives a
// guest two seconds to accept, but it looks at the socket only once the guest's
// vsock driver is up, and until then a connection just hangs.
const handshakeTimeout = 5 * time.Second

// dialVsock opens a stream to a port in the guest through Firecracker's unix
// socket: "CONNECT PORT\n" is answered "OK HOSTPORT\n", or by the end of the
// connection where nothing listens (docs/vsock.md).
func dialVsock(ctx context.Context, socket string, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := fsx.DialUnix(ctx, socket)
	if err != nil {
		return nil, noAgent(port, err)
	}
	// The end of ctx ends a read that is under way.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = handshake(conn, port)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is set on the connection, or just about to be
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		_ = conn.Close()
		return nil, noAgent(port, err)
	}
	return conn, nil
}

func noAgent(port uint32, err error) error {
	return mvm.Errorf(mvm.ErrUnavailable, "the guest does not answer on vsock port %d: %w", port, err).
		WithHint("wait until the guest is up; 'mvm logs' shows its console")
}

// handshake asks for the port and reads exactly the line of the answer: what
// follows it belongs to the caller.
func handshake(conn net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	const longest = len("OK 4294967295\n")
	line := make([]byte, 0, longest)
	for len(line) < longest {
		var b [1]byte
		if _, err := io.ReadFull(conn, b[:]); errors.Is(err, io.EOF) {
			return errors.New("nothing listens there")
		} else if err != nil {
			return err
		}
		if line = append(line, b[0]); b[0] == '\n' {
			break
		}
	}
	if !strings.HasPrefix(string(line), "OK ") || line[len(line)-1] != '\n' {
		return fmt.Errorf("unexpected answer %q", line)
	}
	return nil
}
