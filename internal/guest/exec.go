package guest

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// Size is a terminal's size in characters.
type Size struct{ Cols, Rows int }

// Cmd is a command to run in a guest.
type Cmd struct {
	Argv  []string // looked up in the guest's PATH
	Shell string   // a line for the user's shell; used when Argv is empty. Both empty: a login shell
	Env   []string // "NAME=value"
	Dir   string   // "" is the user's home
	User  string   // "" is the connection's; over the network no other is possible

	TTY    bool   // gives it a terminal: output and errors then come together on Stdout
	Term   string // of the terminal: "xterm-256color"
	Size   Size   // of the terminal at start
	Resize <-chan Size
	Signal <-chan string // SSH's names: "INT", "TERM", "WINCH"

	// Stdin nil is empty input. A Read on it may still be pending when Exec
	// returns; what it then reads is lost.
	Stdin          io.Reader
	Stdout, Stderr io.Writer // nil discards

	data string // ticket of a stream that is its standard input and output instead
}

// Status is how a command ended.
type Status struct {
	Code   int    // exit status; 128+n for signal n, where it is one of the usual ones
	Signal string // "" unless a signal ended it: "TERM"
}

// usual are the numbers that shells report for signals; the same on all Linux.
var usual = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
	"USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "SYS": 31, "XCPU": 24,
}

// Exec runs a command and returns when it has ended and its output is written.
// A command that ends with another status than 0 is no error. When ctx ends, the
// command gets SIGTERM, its streams are closed (SIGHUP), and ctx's error is
// returned. A guest that does not start the command within RequestLimit gives
// mvm.ErrUnavailable.
func (c *Client) Exec(ctx context.Context, cmd Cmd) (Status, error) {
	if err := c.check(cmd); err != nil {
		return Status{}, err
	}
	s, err := within(ctx, c, RequestLimit, func() (*stream, error) { return c.begin(cmd) })
	if err != nil {
		return Status{}, err
	}
	return s.run(ctx, cmd)
}

// Shell runs a login shell on a terminal.
func (c *Client) Shell(ctx context.Context, cmd Cmd) (Status, error) {
	cmd.Argv, cmd.Shell, cmd.TTY = nil, "", true
	return c.Exec(ctx, cmd)
}

func (c *Client) check(cmd Cmd) error {
	for _, e := range cmd.Env {
		if strings.IndexByte(e, '=') < 1 || strings.ContainsRune(e, 0) {
			return mvm.Errorf(mvm.ErrInvalid, "%s is no environment variable", mvm.Quote(e)).WithHint("write NAME=value")
		}
	}
	if !c.agent && cmd.User != "" && cmd.User != c.user {
		return mvm.Errorf(mvm.ErrUnsupported, "over the network a command runs as the user that logs in, here %s", c.user).
			WithHint("log in as %s, or start the VM with the agent", cmd.User)
	}
	return nil
}

// stream is a session channel on which a command was started.
type stream struct {
	ch   ssh.Channel
	reqs <-chan *ssh.Request
}

// begin opens the channel and starts the command.
func (c *Client) begin(cmd Cmd) (*stream, error) {
	ch, reqs, err := c.conn.OpenChannel("session", nil)
	if err != nil {
		return nil, err
	}
	if cmd.TTY {
		term := cmd.Term
		if term == "" {
			term = "xterm"
		}
		ok, err := ch.SendRequest("pty-req", true, ssh.Marshal(struct {
			Term                      string
			Cols, Rows, Width, Height uint32
			Modes                     string
		}{term, uint32(max(cmd.Size.Cols, 0)), uint32(max(cmd.Size.Rows, 0)), 0, 0, "\x00"}))
		if err == nil && !ok {
			err = mvm.Errorf(mvm.ErrUnsupported, "the guest gives no terminal").WithHint("is /dev/pts mounted in it? without -t no terminal is needed")
		}
		if err != nil {
			_ = ch.Close()
			return nil, err
		}
	}
	name, payload, err := c.startRequest(cmd)
	if err == nil {
		var ok bool
		if ok, err = ch.SendRequest(name, true, payload); err == nil && !ok {
			err = mvm.Errorf(mvm.ErrUnsupported, "the guest refuses to run commands").WithHint("is the agent in it older than this mvm? Restart the VM to renew it")
		}
	}
	if err != nil {
		_ = ch.Close()
		return nil, err
	}
	return &stream{ch, reqs}, nil
}

func (c *Client) startRequest(cmd Cmd) (name string, payload []byte, err error) {
	if c.agent {
		payload, err = json.Marshal(wire.Exec{Argv: cmd.Argv, Shell: cmd.Shell, Env: cmd.Env, Dir: cmd.Dir, User: cmd.User, Data: cmd.data})
		if err == nil && len(payload) > wire.MaxRequest {
			err = mvm.Errorf(mvm.ErrInvalid, "the command and its environment are longer than %d bytes", wire.MaxRequest).
				WithHint("pass long input on stdin or copy a file")
		}
		return wire.ReqExec, payload, err
	}
	line := shellLine(cmd)
	if line == "" {
		return "shell", nil, nil
	}
	return "exec", ssh.Marshal(struct{ Line string }{line}), nil
}

// shellLine says in sh's language what the agent is told in JSON, for a plain
// SSH server.
func shellLine(cmd Cmd) string {
	run := cmd.Shell
	if len(cmd.Argv) > 0 {
		run = "exec " + QuoteShell(cmd.Argv...)
	}
	if run == "" && len(cmd.Env) == 0 && cmd.Dir == "" {
		return ""
	}
	if run == "" {
		run = `exec "${SHELL:-/bin/sh}" -l`
	}
	var pre strings.Builder
	if cmd.Dir != "" {
		pre.WriteString("cd " + QuoteShell(cmd.Dir) + " && ")
	}
	if len(cmd.Env) > 0 {
		return pre.String() + "exec env " + QuoteShell(cmd.Env...) + " sh -c " + QuoteShell(run)
	}
	return pre.String() + run
}

// QuoteShell writes words so that a POSIX shell reads them back unchanged.
func QuoteShell(words ...string) string {
	out := make([]string, len(words))
	for i, w := range words {
		plain := w != "" && strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=@%+,") == ""
		if !plain {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		out[i] = w
	}
	return strings.Join(out, " ")
}

// run moves the streams until the command has ended.
func (s *stream) run(ctx context.Context, cmd Cmd) (Status, error) {
	defer func() { _ = s.ch.Close() }()
	stop := context.AfterFunc(ctx, func() {
		s.signal("TERM")
		_ = s.ch.Close()
	})
	defer stop()
	ended := make(chan struct{})
	defer close(ended)
	go s.control(cmd, ended)
	go s.input(cmd.Stdin)
	var out sync.WaitGroup
	errs := make([]error, 2)
	for i, p := range []struct {
		w io.Writer
		r io.Reader
	}{{cmd.Stdout, s.ch}, {cmd.Stderr, s.ch.Stderr()}} {
		if p.w == nil {
			p.w = io.Discard
		}
		out.Add(1)
		go func() {
			defer out.Done()
			if _, errs[i] = io.Copy(p.w, p.r); errs[i] != nil {
				_ = s.ch.Close() // our reader is gone: the command gets SIGHUP
			}
		}()
	}
	st, ok := s.status()
	out.Wait()
	if err := ctx.Err(); err != nil {
		return st, err
	}
	for _, err := range errs {
		if err != nil {
			return st, mvm.Errorf(mvm.ErrUnavailable, "write the command's output: %w", err)
		}
	}
	if !ok {
		return st, mvm.Errorf(mvm.ErrUnavailable, "the connection to the guest was lost before the command ended").
			WithHint("see 'mvm vm ls' whether it still runs")
	}
	return st, nil
}

// status reads the channel's requests up to its end.
func (s *stream) status() (Status, bool) {
	st, ok := Status{Code: 255}, false
	for r := range s.reqs {
		if said, is := readStatus(r.Type, r.Payload); is {
			st, ok = said, true
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	return st, ok
}

// readStatus reads how a command ended (RFC 4254, section 6.10).
func readStatus(request string, payload []byte) (Status, bool) {
	switch request {
	case "exit-status":
		var m struct{ Status uint32 }
		if ssh.Unmarshal(payload, &m) == nil {
			return Status{Code: int(m.Status & 0xff)}, true
		}
	case "exit-signal":
		var m struct {
			Name      string
			Core      bool
			Msg, Lang string
		}
		if ssh.Unmarshal(payload, &m) == nil {
			st := Status{Code: 255, Signal: clean(m.Name)}
			if n := usual[m.Name]; n != 0 {
				st.Code = 128 + n
			}
			return st, true
		}
	}
	return Status{}, false
}

func (s *stream) input(r io.Reader) {
	if r != nil {
		_, _ = io.Copy(s.ch, r)
	}
	_ = s.ch.CloseWrite()
}

func (s *stream) signal(name string) {
	_, _ = s.ch.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{name}))
}

// control passes on signals and the terminal's size.
func (s *stream) control(cmd Cmd, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case size, ok := <-cmd.Resize:
			if !ok {
				cmd.Resize = nil
				continue
			}
			_, _ = s.ch.SendRequest("window-change", false, ssh.Marshal(struct{ Cols, Rows, Width, Height uint32 }{
				uint32(max(size.Cols, 0)), uint32(max(size.Rows, 0)), 0, 0,
			}))
		case name, ok := <-cmd.Signal:
			if !ok {
				cmd.Signal = nil
				continue
			}
			s.signal(name)
		}
	}
}
