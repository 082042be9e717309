package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/boot"
)

// newIdentity makes another machine of this guest, which was restored from a
// snapshot: what boot.Main does before the init starts, on a system that runs.
// Random numbers come first, since whatever follows may use them; the agent's own
// keys last, since until then the host has to be able to ask again.
func (s *Server) newIdentity(n *guest.NewIdentity) error {
	cfg := &n.Config
	if cfg.Version != 1 || cfg.Agent == nil {
		return fmt.Errorf("the identity has version %d, this agent reads version 1", cfg.Version)
	}
	next, err := serverConfig(*cfg.Agent)
	if err != nil {
		return err
	}
	if err := boot.AddEntropy(cfg.Entropy); err != nil {
		return fmt.Errorf("entropy: %w", err)
	}
	root, err := boot.OpenRootfs("/")
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if err := errors.Join(boot.FirstBoot(root, cfg), unix.Sethostname([]byte(cfg.Hostname))); err != nil {
		return err
	}
	if cfg.Network != nil {
		if err := boot.MoveNetwork(n.OldMAC, n.OldAddr, cfg.Network); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	if err := rewriteRun(root, cfg); err != nil {
		return err
	}
	s.renewServices()
	s.config.Store(next)
	return nil
}

// rewriteRun puts the new identity where services and an agent that is started
// again look for it.
func rewriteRun(root *boot.Rootfs, cfg *guest.BootConfig) error {
	run, err := boot.OpenRootfs("/run")
	if err != nil {
		return err
	}
	defer func() { _ = run.Close() }()
	params, err := json.Marshal(cfg.Agent)
	if err != nil {
		return err
	}
	if err := run.MkdirAll(strings.TrimPrefix(guest.RuntimeDir, "/run"), 0o755); err != nil {
		return err
	}
	return errors.Join(
		boot.WriteRunConfig(root, run, cfg.Network),
		run.WriteFile(strings.TrimPrefix(guest.AgentConfig, "/run"), params, 0o600, boot.Owner{}))
}

// renewServices has those that keep the old identity in memory read the new one.
// What fails is logged: the machine is another one all the same, and a service
// that was not told shows an old key, which the host refuses.
func (s *Server) renewServices() {
	init := initName()
	for pid, exe := range daemons() {
		switch {
		case exe == "sshd": // sshd(8): SIGHUP rereads configuration and host keys
			s.logError("renew sshd", syscall.Kill(pid, syscall.SIGHUP))
		case exe == "dropbear" && init == "busybox": // it has no such signal; its init starts it again
			s.logError("renew dropbear", syscall.Kill(pid, syscall.SIGTERM))
		}
	}
	if init != "systemd" {
		return
	}
	for _, argv := range [][]string{
		{"/usr/bin/networkctl", "reload"},
		{"/usr/bin/systemctl", "--no-block", "try-restart", "dropbear.service", "systemd-hostnamed.service", "systemd-resolved.service"},
	} {
		if _, err := os.Stat(argv[0]); err == nil {
			s.logError(path.Base(argv[0]), runProgram(argv))
		}
	}
}

func (s *Server) logError(what string, err error) {
	if err != nil {
		s.logf("%s: %v", what, err)
	}
}

// daemons are the processes that the init has started, by pid, with the names of
// their programs.
func daemons() map[int]string {
	found := map[int]string{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		pid, err := strconv.Atoi(path.Base(path.Dir(f)))
		if err != nil {
			continue
		}
		text := line(f)
		_, rest, ok := strings.Cut(text, ") ") // proc_pid_stat(5): pid (comm) state ppid
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 || fields[1] != "1" {
			continue
		}
		if exe, err := os.Readlink(path.Dir(f) + "/exe"); err == nil {
			found[pid] = path.Base(exe)
		}
	}
	return found
}
