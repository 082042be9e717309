package qemu

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/vmm"
)

// zeros are endless, and counted.
type zeros struct{ n atomic.Int64 }

func (z *zeros) Read(p []byte) (int, error) {
	clear(p)
	z.n.Add(int64(len(p)))
	return len(p), nil
}

func (z *zeros) Write(p []byte) (int, error) {
	z.n.Add(int64(len(p)))
	return len(p), nil
}

// flows returns when more has come through than had.
func flows(t *testing.T, g *guestVM, what string, z *zeros) {
	t.Helper()
	ctx := g.within()
	for before := z.n.Load(); z.n.Load() < before+1<<20; {
		if ctx.Err() != nil {
			t.Fatalf("%s stands still after %d bytes", what, z.n.Load())
		}
		<-tick()
	}
}

// uploads are so many that the serial port has no room for what is on the way: the
// VM is then written in the middle of a frame.
const uploads = 3

// A guest that is written in the middle of transfers in both directions is reached
// again after it was loaded, each time; in the VM that was written they go on.
func TestRealAgentAfterRestore(t *testing.T) {
	g := linuxLaunch(t).start()
	c := g.client()
	boot := g.sh(c, "cat /proc/sys/kernel/random/boot_id")
	ctx, cancel := context.WithCancel(t.Context())
	var up, down zeros
	done := make(chan error, uploads+1)
	for range uploads {
		go func() {
			_, err := g.client().Exec(ctx, guest.Cmd{Shell: "cat > /dev/null", Stdin: &up})
			done <- err
		}()
	}
	go func() {
		_, err := g.client().Exec(ctx, guest.Cmd{Shell: "cat /dev/zero", Stdout: &down})
		done <- err
	}()
	flows(t, g, "to the guest", &up)
	flows(t, g, "from the guest", &down)
	files := g.snapshot()
	flows(t, g, "to the guest, after the snapshot", &up)
	flows(t, g, "from the guest, after the snapshot", &down)
	for range 3 {
		other := g.restored(files, true).start()
		oc := other.client()
		if got := other.sh(oc, "cat /proc/sys/kernel/random/boot_id"); got != boot {
			t.Errorf("the guest booted anew: %s, was %s", got, boot)
		}
		if err := other.Kill(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	flows(t, g, "to the guest, in the end", &up)
	cancel()
	for range cap(done) {
		if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, io.EOF) {
			t.Errorf("a transfer ended: %v", err)
		}
	}
}

// One that is loaded paused is reached when it is resumed, by another process too;
// it can be written in turn, and powered off.
func TestRealRestorePaused(t *testing.T) {
	g := linuxLaunch(t).start()
	g.sh(g.client(), "echo kept > /root/note")
	other := g.restored(g.snapshot(), false).start()
	if state, err := other.State(t.Context()); state != vmm.StatePaused || err != nil {
		t.Fatalf("State = %q, %v", state, err)
	}
	again, err := newDriver(t).Attach(t.Context(), other.Handle())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.(vmm.Pauser).Resume(other.within()); err != nil {
		t.Fatal(err)
	}
	if got := other.sh(other.client(), "cat /root/note"); got != "kept" {
		t.Errorf("the note reads %q", got)
	}
	third := other.restored(other.snapshot(), true).start()
	if got := third.sh(third.client(), "cat /root/note"); got != "kept" {
		t.Errorf("the note of the third reads %q", got)
	}
	if err := third.client().PowerOff(third.within()); err != nil {
		t.Fatal(err)
	}
	if exit, err := third.Wait(third.within()); err != nil || exit.Code != 0 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}
