package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// maxQMPLine bounds one line from QEMU; its longest answer to what we ask, the
// schema left out, has a few KiB.
const maxQMPLine = 1 << 20

// maxEvents bounds the events that are kept for Events.
const maxEvents = 64

// QMP is a connection to QEMU's monitor
// (https://www.qemu.org/docs/master/interop/qmp-spec.html). QEMU serves one
// client at a time on a socket, and a QMP serves one goroutine at a time.
type QMP struct {
	conn    net.Conn
	lines   *bufio.Scanner
	last    uint64 // id of the last command
	version string
	events  []QMPEvent
}

// QMPEvent is something that QEMU tells unasked.
type QMPEvent struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Command string `json:"-"`
	Class   string `json:"class"` // "GenericError", "CommandNotFound", …
	Desc    string `json:"desc"`
}

// Error names the command and QEMU's sentence.
func (e *QMPError) Error() string { return fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Desc) }

// message is any line from QEMU.
type message struct {
	Greeting *struct {
		Version struct {
			QEMU struct {
				Major int `json:"major"`
				Minor int `json:"minor"`
				Micro int `json:"micro"`
			} `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *QMPError       `json:"error"`
	ID     string          `json:"id"`
	QMPEvent
}

// DialQMP connects to a monitor and makes it ready for commands. A monitor that
// serves another client keeps it waiting, until ctx ends.
func DialQMP(ctx context.Context, socket string) (*QMP, error) {
	conn, err := dialPatiently(ctx, socket)
	if err != nil {
		return nil, unanswered(err)
	}
	q := newQMP(conn)
	if err := q.greet(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return q, nil
}

// dialPatiently connects to a socket that may have a queue: a monitor's has one
// place, and the kernel refuses who comes after that.
func dialPatiently(ctx context.Context, socket string) (net.Conn, error) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		conn, err := fsx.DialUnix(ctx, socket)
		if !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
		}
	}
}

func newQMP(conn net.Conn) *QMP {
	q := &QMP{conn: conn, lines: bufio.NewScanner(conn)}
	q.lines.Buffer(nil, maxQMPLine)
	return q
}

// greet reads the greeting and leaves the negotiation mode.
func (q *QMP) greet(ctx context.Context) error {
	err := q.within(ctx, func() error {
		m, err := q.read()
		if err != nil {
			return err
		}
		if m.Greeting == nil {
			return mvm.Errorf(mvm.ErrBroken, "what answers on QEMU's socket does not speak QMP").WithHint("stop the VM with --force and start it again")
		}
		v := m.Greeting.Version.QEMU
		q.version = fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
		return nil
	})
	if err != nil {
		return err
	}
	return q.Execute(ctx, "qmp_capabilities", nil, nil)
}

// Version returns QEMU's version, from its greeting.
func (q *QMP) Version() string { return q.version }

// Events returns the events that arrived with the answers so far, oldest first,
// at most 64, and forgets them.
func (q *QMP) Events() []QMPEvent {
	e := q.events
	q.events = nil
	return e
}

// Execute runs a command and decodes what it returns into result, unless that is
// nil. A refusal is a *QMPError. After any other error the connection is of no
// more use.
func (q *QMP) Execute(ctx context.Context, command string, args, result any) error {
	return q.execute(ctx, command, args, result, q.conn.Write)
}

// PassFile gives QEMU an open file, under a name for commands that take one
// (getfd in qapi/misc.json).
func (q *QMP) PassFile(ctx context.Context, name string, f *os.File) error {
	conn, ok := q.conn.(*net.UnixConn)
	if !ok {
		return mvm.Errorf(mvm.ErrBroken, "files pass through a unix socket only").WithHint("stop the VM with --force and start it again")
	}
	rights := unix.UnixRights(int(f.Fd()))
	return q.execute(ctx, "getfd", map[string]string{"fdname": name}, nil, func(line []byte) (int, error) {
		n, _, err := conn.WriteMsgUnix(line, rights, nil)
		if err == nil && n < len(line) { // the file went with the first bytes
			_, err = conn.Write(line[n:])
		}
		return len(line), err
	})
}

func (q *QMP) execute(ctx context.Context, command string, args, result any, write func([]byte) (int, error)) error {
	q.last++
	id := strconv.FormatUint(q.last, 10)
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "the arguments of %s: %w", command, err)
	}
	return q.within(ctx, func() error {
		if _, err := write(append(line, '\n')); err != nil {
			return unanswered(err)
		}
		m, err := q.answer(id)
		switch {
		case err != nil:
			return err
		case m.Error != nil:
			m.Error.Command = command
			return m.Error
		case result == nil:
			return nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return mvm.Errorf(mvm.ErrBroken, "QEMU's answer to %s: %w", command, err)
		}
		return nil
	})
}

// answer reads up to the answer with an id. An error without an id is QEMU's
// word on a line that it could not read, which was ours.
func (q *QMP) answer(id string) (message, error) {
	for {
		m, err := q.read()
		switch {
		case err != nil:
			return m, err
		case m.Name != "":
			if len(q.events) < maxEvents {
				q.events = append(q.events, m.QMPEvent)
			}
		case m.ID == id && (m.Return != nil || m.Error != nil), m.ID == "" && m.Error != nil:
			return m, nil
		}
	}
}

func (q *QMP) read() (message, error) {
	var m message
	if !q.lines.Scan() {
		err := q.lines.Err()
		if err == nil {
			err = errors.New("it closed the connection")
		}
		return m, unanswered(err)
	}
	if err := json.Unmarshal(q.lines.Bytes(), &m); err != nil {
		return m, mvm.Errorf(mvm.ErrBroken, "QEMU's monitor says what is no QMP: %w", err)
	}
	return m, nil
}

func unanswered(err error) error {
	return mvm.Errorf(mvm.ErrUnavailable, "QEMU does not answer: %w", err).WithHint("see 'mvm vm ls' for whether the VM runs")
}

// within ends f's waiting on the connection with ctx.
func (q *QMP) within(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = q.conn.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Close ends the connection; QEMU goes on.
func (q *QMP) Close() error { return q.conn.Close() }
