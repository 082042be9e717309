package qemu

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
)

func newDriver(t testing.TB) *Driver {
	return New(Options{Launcher: supervisor.Launcher{Exe: "/proc/self/exe"}, CacheDir: t.TempDir(), Runner: &run.Host{}})
}

// TestConformance runs real QEMUs, whose guest is a kernel of some bytes.
func TestConformance(t *testing.T) {
	testenv.Require(t, "qemu")
	waits, ends := vmmtest.TinyGuest(t, false), vmmtest.TinyGuest(t, true)
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture {
		return vmmtest.Fixture{
			Driver: newDriver(t), Hello: vmmtest.GuestHello,
			Launch:   func(t testing.TB) vmm.Launch { return realLaunch(t, waits) },
			PowerOff: func(l *vmm.Launch) { l.Kernel = ends },
		}
	})
}

// realLaunch is a VM with a disk.
func realLaunch(t testing.TB, kernel string) vmm.Launch {
	l := vmmtest.NewLaunch(t, host.Find(program), "tcg", kernel)
	l.Disks = []vmm.Disk{{ID: "rootfs", Path: filepath.Join(l.Dir, "rootfs"), Format: "raw"}}
	if err := os.WriteFile(l.Disks[0].Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// Questions that race with the guest's end, as often as can be, neither fail nor
// leave a QEMU that hangs.
func TestRealStateDuringEnd(t *testing.T) {
	testenv.Require(t, "qemu")
	kernel := vmmtest.TinyGuest(t, true)
	for range 20 {
		m, err := newDriver(t).Start(t.Context(), realLaunch(t, kernel))
		if err != nil {
			t.Fatal(err)
		}
		for state := vmm.StateRunning; state != vmm.StateExited; {
			if state, err = m.State(t.Context()); err != nil {
				t.Fatalf("State: %v", err)
			}
		}
		if err := m.Kill(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}

// A QEMU that has closed its disk and does not answer is ended; one that has not
// is left alone. A process without the disk, which never answers, is the former.
func TestReap(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, c := range []struct {
		name string
		spec proc.Spec
		ends bool
	}{
		{"closed", proc.Spec{Path: "/bin/sleep", Args: []string{"300"}}, true},
		{"open", proc.Spec{Path: "/bin/sleep", Args: []string{"300"}, ExtraFiles: []*os.File{f}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, id, err := proc.StartDetached(c.spec)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = p.Wait() }()
			defer func() { _ = p.Kill() }()
			more, err := json.Marshal(extra{Disk: disk})
			if err != nil {
				t.Fatal(err)
			}
			m := &machine{handle: vmm.Handle{VMM: id, Extra: more}}
			ctx, cancel := context.WithTimeout(t.Context(), 4*reapEvery)
			defer cancel()
			m.reap(ctx)
			if c.ends {
				err := proc.WaitExit(ctx, id)
				if err != nil {
					t.Errorf("WaitExit: %v", err)
				}
			} else if !proc.Alive(id) {
				t.Error("it was ended")
			}
		})
	}
}
