package qemu

import (
	"testing"

	"github.com/mvmctl/mvm/internal/host"
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
			Launch:   func(t testing.TB) vmm.Launch { return vmmtest.NewLaunch(t, host.Find(program), "tcg", waits) },
			PowerOff: func(l *vmm.Launch) { l.Kernel = ends },
		}
	})
}
