package firecracker

import (
	"testing"

	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// fixture brings the conformance suite a bench.
func (b bench) fixture(t *testing.T, kvm func() host.KVM) vmmtest.Fixture {
	return vmmtest.Fixture{
		Driver: New(Options{
			Binary: b.binary, Runner: &run.Host{}, CheckKVM: kvm,
			Launcher: supervisor.Launcher{Exe: newDriver(t).opts.Launcher.Exe},
		}),
		Launch: func(t testing.TB) vmm.Launch { return b.launch(t) },
		Hello:  ": ready", Answers: true, Taps: b.taps,
		PowerOff: func(l *vmm.Launch) { l.Cmdline += " " + fakevmm.PowerOffArg },
	}
}

func TestFakeConformance(t *testing.T) {
	kvm := func() host.KVM { return host.KVM{Usable: true} }
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture { return fakeBench(t).fixture(t, kvm) })
}

func TestRealConformance(t *testing.T) {
	realBench(t)
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture { return realBench(t).fixture(t, nil) })
}
