package api

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

func TestWaitForWords(t *testing.T) {
	for w, ok := range map[WaitFor]bool{
		"": true, "ready": true, "ssh": true, "stopped": true, "port:1": true, "port:65535": true, WaitPort(80): true,
		"Ready": false, "port": false, "port:": false, "port:0": false, "port:65536": false, "port:-1": false, "port:http": false, "80": false,
	} {
		err := w.Validate()
		if ok != (err == nil) {
			t.Errorf("%q: %v", w, err)
		}
		if err != nil {
			refused(t, err, mvm.ErrInvalid, "cannot be waited for")
		}
	}
}

func TestWaitPort(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	var boots, listens atomic.Int32
	g := &testGuest{
		ready: func() bool { return boots.Add(1) > 2 },
		port:  func(port int) bool { return port == 80 && listens.Add(1) > 3 },
	}
	g.serve(w, m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Wait: WaitPort(80), WaitLimit: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if listens.Load() < 4 {
		t.Errorf("it returned after %d tries, though the port accepts from the fourth on", listens.Load())
	}
	if err := m.VM.Wait(t.Context(), sel("web"), WaitReady, time.Minute); err != nil {
		t.Error(err)
	}
	err := m.VM.Wait(t.Context(), sel("web"), WaitPort(81), 200*time.Millisecond)
	refused(t, err, mvm.ErrUnavailable, "the guest was not listening on port 81 within 200ms")
	refused(t, m.VM.Wait(t.Context(), sel("web"), "noon", 0), mvm.ErrInvalid, "noon")
	refused(t, m.VM.Wait(t.Context(), sel("web"), WaitReady, -1), mvm.ErrInvalid, "negative")
}

func TestWaitStopped(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	n := 3
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "job", Count: &n})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, m.VM.Wait(t.Context(), sel("job-1"), WaitStopped, 50*time.Millisecond), mvm.ErrUnavailable, "was not stopped within 50ms: it is running")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.VM.Wait(ctx, sel("job-1"), WaitStopped, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	waited := make(chan error)
	wait := func(name string) { go func() { waited <- m.VM.Wait(t.Context(), sel(name), WaitStopped, 0) }() }
	wait("job-1")                                                                     // ends by itself
	put(t, filepath.Join(m.core.paths.vm(res.VMs[0].ID), vmm.ExitFile), `{"code":0}`) // as the supervisor leaves it
	w.driver.End(res.VMs[0].ID, vmm.Exit{Reason: "guest powered off"})
	if err := <-waited; err != nil {
		t.Error(err)
	}
	wait("job-2") // is paused, and ends by a command
	if _, err := m.VM.Pause(t.Context(), sel("job-2")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Stop(t.Context(), VMInput{Identifiers: []string{"job-2"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := m.VM.Wait(t.Context(), sel("job-1", "job-2"), WaitStopped, 0); err != nil {
		t.Errorf("already there: %v", err)
	}
	wait("job-3")
	w.driver.End(res.VMs[2].ID, vmm.Exit{Code: 1, Reason: "it broke"})
	refused(t, <-waited, mvm.ErrUnavailable, "it is crashed: ")
	refused(t, m.VM.Wait(t.Context(), sel("job-1"), WaitReady, 0), mvm.ErrConflict, "it is stopped")
}
