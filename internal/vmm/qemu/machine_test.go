package qemu

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest/mux"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
)

// supervisorSocket offers what a supervisor does: serve answers each connection.
func supervisorSocket(t *testing.T, serve func(net.Conn)) *machine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := fsx.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return &machine{handle: vmm.Handle{Guest: vmm.GuestChannel{Kind: "mux", Path: path}}}
}

func TestDialGuest(t *testing.T) {
	m := supervisorSocket(t, func(conn net.Conn) {
		if port, err := mux.ReadConnect(conn); err != nil || port != 1024 {
			t.Errorf("CONNECT %d, %v", port, err)
			return
		}
		_ = mux.WriteOK(conn, 1024)
		_, _ = io.Copy(conn, conn)
	})
	conn, err := m.DialGuest(t.Context(), 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "ping"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "ping" {
		t.Errorf("read %q, %v", buf, err)
	}
}

func TestDialGuestRefused(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"closed":  func(net.Conn) {},
		"garbage": func(c net.Conn) { _, _ = io.WriteString(c, "NO\n") },
		"endless": func(c net.Conn) { _, _ = io.WriteString(c, strings.Repeat("x", 1000)) },
	} {
		conn, err := supervisorSocket(t, serve).DialGuest(t.Context(), 1)
		if conn != nil || !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v, %v, want ErrUnavailable with a hint", name, conn, err)
		}
	}
}

// A supervisor that is silent does not hold a caller whose context ends.
func TestDialGuestCancelled(t *testing.T) {
	m := supervisorSocket(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(10*time.Millisecond, cancel)
	defer timer.Stop()
	if _, err := m.DialGuest(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("DialGuest = %v, want context.Canceled", err)
	}
}

// A socket is removed when nobody listens, and only then.
func TestRemoveDead(t *testing.T) {
	dir := t.TempDir()
	dead, live, file := filepath.Join(dir, "dead"), filepath.Join(dir, "live"), filepath.Join(dir, "file")
	for _, path := range []string{dead, live} {
		l, err := fsx.ListenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		if path == dead {
			_ = l.Close()
		} else {
			defer func() { _ = l.Close() }()
		}
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, stays := range map[string]bool{dead: false, live: true, file: true, filepath.Join(dir, "none"): false} {
		removeDead(t.Context(), path)
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("%s: %v, want it to stay: %v", filepath.Base(path), err, stays)
		}
	}
}

// Paths and names that are special to QEMU's parser reach it as they are.
func TestRealCommas(t *testing.T) {
	testenv.Require(t, "qemu")
	dir := filepath.Join(t.TempDir(), "a,b=c,readonly=on", strings.Repeat("long", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	disk, kernel := filepath.Join(dir, "d,,1.raw"), filepath.Join(dir, "k,1")
	data, err := os.ReadFile(vmmtest.TinyGuest(t, true))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(kernel, data, 0o600), os.WriteFile(disk, make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	l := vmmtest.NewLaunch(t, host.Find(program), "tcg", kernel)
	l.Dir, l.Disks, l.VCPUs, l.Nested = dir, []vmm.Disk{{ID: "rootfs", Path: disk, Format: "raw"}, {ID: "ro", Path: kernel, Format: "raw", ReadOnly: true}}, 2, true
	m, err := newDriver(t).Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := m.Wait(t.Context()); err != nil || exit.Code != 0 || exit.Reason != "guest powered off" {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}

// An end by SIGTERM, which QEMU makes one with status 0, is not taken for the
// guest's own.
func TestRealTerminated(t *testing.T) {
	testenv.Require(t, "qemu")
	m, err := newDriver(t).Start(t.Context(), vmmtest.NewLaunch(t, host.Find(program), "tcg", vmmtest.TinyGuest(t, false)))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if exit, err := m.Wait(t.Context()); err != nil || exit.Code != 0 || exit.Reason != "QEMU was ended by a signal" {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}

// A VM outlives its supervisor, and Kill then cleans up for both.
func TestRealSupervisorKilled(t *testing.T) {
	testenv.Require(t, "qemu")
	l := vmmtest.NewLaunch(t, host.Find(program), "tcg", vmmtest.TinyGuest(t, false))
	d := newDriver(t)
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Kill(t.Context(), m.Handle().Supervisor, 0); err != nil {
		t.Error(err)
	}
	if state, err := m.State(t.Context()); state != vmm.StateRunning || err != nil {
		t.Errorf("State = %q, %v", state, err)
	}
	if _, err := m.DialGuest(t.Context(), 1); !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("DialGuest: %v, want ErrUnavailable", err)
	}
	if _, err := d.Start(t.Context(), l); !errors.Is(err, mvm.ErrConflict) || mvm.HintOf(err) == "" {
		t.Errorf("Start of a VM that runs: %v, want ErrConflict with a hint", err)
	}
	if err := m.Kill(t.Context(), 0); err != nil {
		t.Error(err)
	}
	for _, name := range []string{l.Files.API, l.Files.Agent, l.Files.ConsoleSocket, agentDevice} {
		if _, err := os.Lstat(filepath.Join(l.Dir, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	if exit, err := m.Wait(t.Context()); err != nil || exit.Code != -1 || exit.Reason == "" {
		t.Errorf("Wait = %+v, %v, want that nothing tells how it ended", exit, err)
	}
}
