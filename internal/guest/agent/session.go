package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm/internal/guest/wire"
)

// session is one SSH session channel: at most one command (RFC 4254, section 6).
type session struct {
	srv  *Server
	user string
	ch   ssh.Channel
	env  []string
	pty  *pty
	term string

	started bool
	proc    *process
	data    net.Conn // instead of ch for standard input and output; nil where it is ch
	failure error    // why the command did not start
	done    sync.WaitGroup
}

type ptyRequest struct {
	Term                      string
	Cols, Rows, Width, Height uint32
	Modes                     string
}

type windowChange struct{ Cols, Rows, Width, Height uint32 }

type setenv struct{ Name, Value string }

type text struct{ Value string }

// serve handles the channel's requests until it is closed.
func (s *session) serve(reqs <-chan *ssh.Request) {
	for r := range reqs {
		ok := s.request(r)
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
		if s.failure != nil {
			s.fail(s.failure)
			s.failure = nil
		}
		if ok && s.proc != nil && !s.started {
			s.started = true
			s.done.Add(1)
			go func() {
				defer s.done.Done()
				defer s.srv.guard("session")
				s.finish()
			}()
		}
	}
	if s.proc != nil {
		s.proc.hangup() // the host is gone; what wants to live on ignores SIGHUP
	}
	if s.data != nil {
		_ = s.data.Close()
	}
	if s.pty != nil && s.proc == nil {
		s.pty.close()
	}
	s.done.Wait()
	_ = s.ch.Close()
}

func (s *session) request(r *ssh.Request) bool {
	if len(r.Payload) > wire.MaxRequest {
		return false
	}
	switch r.Type {
	case "env":
		var e setenv
		return ssh.Unmarshal(r.Payload, &e) == nil && s.addEnv(e.Name+"="+e.Value)
	case "pty-req":
		var p ptyRequest
		return ssh.Unmarshal(r.Payload, &p) == nil && s.openPTY(p)
	case "window-change":
		var w windowChange
		if ssh.Unmarshal(r.Payload, &w) != nil || s.pty == nil {
			return false
		}
		return s.pty.resize(w.Cols, w.Rows) == nil
	case "signal":
		var t text
		return ssh.Unmarshal(r.Payload, &t) == nil && s.proc != nil && s.proc.signal(t.Value)
	case "exec":
		var t text
		return ssh.Unmarshal(r.Payload, &t) == nil && s.start(wire.Exec{Shell: t.Value})
	case "shell":
		return s.start(wire.Exec{})
	case wire.ReqExec:
		var e wire.Exec
		return json.Unmarshal(r.Payload, &e) == nil && s.start(e)
	case "subsystem":
		var t text
		return ssh.Unmarshal(r.Payload, &t) == nil && t.Value == "sftp" && s.startSFTP()
	}
	return false
}

func (s *session) addEnv(e string) bool {
	if len(s.env) >= maxEnv || len(e) > maxEnvBytes || strings.ContainsRune(e, 0) || strings.IndexByte(e, '=') < 1 {
		return false
	}
	s.env = append(s.env, e)
	return true
}

func (s *session) openPTY(r ptyRequest) bool {
	if s.pty != nil || s.proc != nil {
		return false
	}
	p, err := openPTY(r.Cols, r.Rows)
	if err != nil {
		s.srv.logf("open a pty: %v", err)
		return false
	}
	s.pty, s.term = p, r.Term
	return true
}

// start runs the command. A failure is told, after the reply, as a shell would: on standard error
// with status 126 or 127, since SSH has no words for it.
func (s *session) start(e wire.Exec) bool {
	if s.proc != nil {
		return false
	}
	for _, v := range e.Env {
		if !s.addEnv(v) {
			s.failure = &startError{126, fmt.Errorf("cannot set the environment variable %.40q", v)}
			return true
		}
	}
	if e.User == "" {
		e.User = s.user
	}
	e.Env = s.env
	if e.Data != "" {
		if s.data = s.srv.data.take(e.Data); s.data == nil {
			s.failure = &startError{126, errors.New("the stream for its data is gone")}
			return true
		}
	}
	if s.term != "" {
		e.Env = append([]string{"TERM=" + s.term}, e.Env...)
	}
	p, err := startProcess(e, s.pty)
	if err != nil {
		s.failure = err
		return true
	}
	s.proc = p
	s.srv.track(p, true)
	return true
}

// startSFTP serves files as the session's user, in a process of its own so that
// the kernel checks the permissions.
func (s *session) startSFTP() bool {
	return s.start(wire.Exec{Argv: []string{"/proc/self/exe", "sftp"}})
}

func (s *session) fail(err error) {
	code := 126
	var se *startError
	if errors.As(err, &se) {
		code = se.code
	}
	fmt.Fprintf(s.ch.Stderr(), "mvm: %v\n", err)
	s.exitStatus(code)
	_ = s.ch.CloseWrite()
	_ = s.ch.Close()
}

func (s *session) exitStatus(code int) {
	_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(code)}))
}

// finish moves the command's streams, waits for it and reports how it ended.
func (s *session) finish() {
	p := s.proc
	var stream io.ReadWriter = s.ch
	size := pumpBuffer
	if s.data != nil {
		stream, size = s.data, dataBuffer
		p.enlarge()
	}
	go func() {
		defer s.srv.guard("stdin")
		_, _ = io.CopyBuffer(struct{ io.Writer }{p.stdin}, struct{ io.Reader }{stream}, make([]byte, size))
		p.closeStdin()
	}()
	var out sync.WaitGroup
	pump := func(w io.Writer, f *os.File, size int) {
		if f == nil {
			return
		}
		out.Add(1)
		go func() {
			defer out.Done()
			defer s.srv.guard("output")
			if err := p.pump(w, f, size); err != nil {
				p.hangup()
				if p.pty == nil { // what ignores that gets SIGPIPE
					_ = f.Close()
				}
			}
		}()
	}
	pump(stream, p.stdout, size)
	pump(s.ch.Stderr(), p.stderr, pumpBuffer)
	state := p.wait()
	out.Wait()
	if s.data != nil {
		_ = s.data.Close()
	}
	s.srv.track(p, false)
	if name, core, ok := state.signalled(); ok {
		_, _ = s.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name      string
			Core      bool
			Msg, Lang string
		}{name, core, "", ""}))
	} else {
		s.exitStatus(state.code)
	}
	_ = s.ch.CloseWrite()
	_ = s.ch.Close()
	p.release()
}
