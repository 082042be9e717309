package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

const (
	successor   = guest.AgentPath + ".new"
	maxProgram  = 64 << 20
	replyFirst  = 100 * time.Millisecond // for an answer to reach the host
	leaveLimit  = 3 * time.Second        // for a frame to be written
	checkOption = "check"                // the argument with which the program only starts and ends
)

// Receive reads the agent's successor and puts it beside the agent, if it is what
// was sent and can be run here.
func Receive(r io.Reader, sum string) error {
	if err := os.MkdirAll(guest.RuntimeDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(successor, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o700)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(r, maxProgram))
	if err = errors.Join(err, f.Chmod(0o755), f.Close()); err == nil && hex.EncodeToString(h.Sum(nil)) != sum {
		err = errors.New("what came is not what was sent")
	}
	if err == nil {
		err = runProgram([]string{successor, checkOption})
	}
	if err != nil {
		return errors.Join(err, os.Remove(successor))
	}
	return nil
}

// renew has the successor take this process's place, and so its parent, its
// listeners and its standing with the kernel. What runs and who is connected would
// be lost: then it refuses.
func (s *Server) renew(n wire.Renew) error {
	s.mu.Lock()
	running := len(s.running)
	s.mu.Unlock()
	if running > 0 || len(s.conns) > 1 {
		return fmt.Errorf("%d commands run and %d connections are open", running, len(s.conns))
	}
	if n.Check {
		return nil
	}
	if _, err := os.Stat(successor); err != nil {
		return errors.New("there is no successor")
	}
	if err := s.leaveParams(n.Version); err != nil {
		return err
	}
	if err := os.Rename(successor, guest.AgentPath); err != nil {
		return err
	}
	go func() {
		defer s.guard("renew")
		time.Sleep(replyFirst)
		if f := s.frames.Load(); f != nil {
			f.stop(leaveLimit)
		}
		argv := []string{"mvm-agent", "serve", "--config", guest.AgentConfig}
		s.logf("renewing to %s", n.Version)
		s.logf("renewing failed: %v", syscall.Exec(guest.AgentPath, argv, os.Environ()))
	}()
	return nil
}

// leaveParams writes down what the successor is to run with: what stands there,
// which a new identity may have changed, or else what we were given.
func (s *Server) leaveParams(version string) error {
	p := s.params
	if f, err := os.Open(guest.AgentConfig); err == nil {
		now, err := ReadParams(f)
		if err = errors.Join(err, f.Close()); err == nil && now.HostKey != "" {
			p = now
		}
	}
	p.Version = version
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	tmp := guest.AgentConfig + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, guest.AgentConfig)
}
