// Package vmmtest holds drivers to the contract of package vmm: one suite for the
// fake, for a driver with a fake VMM, and for a driver with the real one. It knows
// no driver but the fake, which is its own.
package vmmtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Fixture is a driver and VMs for it. Each test gets one of its own.
type Fixture struct {
	Driver vmm.Driver

	// Launch returns a VM with an id and a directory of its own, and with a
	// channel for the agent. Its guest prints Hello and then waits; nothing in it
	// listens.
	Launch func(t testing.TB) vmm.Launch
	Hello  string // what the guest prints on its console, or a part of it

	// PowerOff makes the guest of a launch power off by itself as soon as it has
	// printed Hello; nil where no guest of the fixture can.
	PowerOff func(l *vmm.Launch)

	// Answers says that the guest answers lines on its console: "count" by "count N",
	// N one more each time; "disks" by "disks N", after it has looked for new ones;
	// "drop" by "dropped", after it has let go of the last one; "metadata" by
	// "metadata JSON", as its metadata service has it.
	Answers bool

	// Taps are tap devices that nobody uses; without two, interfaces are not tested.
	Taps []string

	// InMemory says that the driver executes no binary.
	InMemory bool

	// Crash ends the VMM as if by SIGKILL; nil sends that signal.
	Crash func(t testing.TB, h vmm.Handle)
}

// limit bounds whatever a test waits for. It is no measure: a busy machine takes
// its time.
const limit = 4 * time.Minute

// Run runs the suite.
func Run(t *testing.T, fixture func(t *testing.T) Fixture) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, Fixture)
	}{
		{"Probe", testProbe},
		{"Render", testRender},
		{"Start", testStart},
		{"Capabilities", testCapabilities},
		{"Attach", testAttach},
		{"AttachRefuses", testAttachRefuses},
		{"Console", testConsole},
		{"Pause", testPause},
		{"Shutdown", testShutdown},
		{"Kill", testKill},
		{"KillGently", testKillGently},
		{"Crash", testCrash},
		{"PowerOff", testPowerOff},
		{"WaitCancelled", testWaitCancelled},
		{"DialGuest", testDialGuest},
		{"StartCancelled", testStartCancelled},
		{"StartFails", testStartFails},
		{"StartAgain", testStartAgain},
		{"Two", testTwo},
		{"AtOnce", testAtOnce},
		{"LongPath", testLongPath},
		{"Snapshot", testSnapshot},
		{"SnapshotRefuses", testSnapshotRefuses},
		{"SnapshotCancelled", testSnapshotCancelled},
		{"SnapshotFullDisk", testSnapshotFullDisk},
		{"SnapshotDiff", testSnapshotDiff},
		{"LoadRefuses", testLoadRefuses},
		{"DiskHotplug", testDiskHotplug},
		{"Balloon", testBalloon},
		{"DiskLimits", testDiskLimits},
		{"NICLimits", testNICLimits},
		{"Metadata", testMetadata},
		{"Metrics", testMetrics},
		{"HugePages", testHugePages},
	} {
		if c.name == "PowerOff" && fixture(t).PowerOff == nil {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			f := fixture(t)
			if f.Crash == nil {
				f.Crash = crash
			}
			c.test(t, f)
		})
	}
}

// NewLaunch returns a small VM with an id and a directory of its own, and with a
// channel for the agent.
func NewLaunch(t testing.TB, binary, accel, kernel string) vmm.Launch {
	t.Helper()
	var raw [8]byte
	_, _ = rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	return vmm.Launch{
		ID: id, Name: "vm-" + id[:4], Dir: t.TempDir(), Binary: binary, Accel: accel, Kernel: kernel, VCPUs: 1, MemMiB: 128, Agent: true,
		Files: vmm.Files{
			API: "api.sock", Config: "config.json", Log: "vmm.log", Console: "console.log", ConsoleSocket: "console.sock",
			Metrics: "metrics", PID: "pid", Agent: "agent.sock",
		},
	}
}

func crash(t testing.TB, h vmm.Handle) {
	if err := proc.Signal(h.VMM, unix.SIGKILL); err != nil {
		t.Fatalf("signal: %v", err)
	}
}

// start starts a VM that is ended with the test.
func start(t *testing.T, f Fixture, l vmm.Launch) vmm.Machine {
	t.Helper()
	m, err := f.Driver.Start(within(t), l)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	endWithTest(t, m)
	return m
}

func endWithTest(t *testing.T, m vmm.Machine) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := m.Kill(ctx, 0); err != nil {
			t.Errorf("Kill in the end: %v", err)
		}
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		wantNothingLeft(t, m.Handle().ID, m.Handle().Dir)
	})
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		<-ticker.C
	}
}

// wantNothingLeft fails the test when processes or sockets of a VM are left.
func wantNothingLeft(t *testing.T, id, dir string) {
	t.Helper()
	left, err := proc.FindByArg(supervisor.Token(id))
	if err != nil || len(left) > 0 {
		t.Errorf("processes left: %v, %v", left, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Errorf("read the VM's directory: %v", err)
	}
	for _, e := range entries {
		if e.Type()&(os.ModeSocket|os.ModeNamedPipe) != 0 {
			t.Errorf("%s left in the VM's directory", e.Name())
		}
	}
	wantNoJail(t, id, dir)
}

func wantState(t *testing.T, m vmm.Machine, want vmm.State) {
	t.Helper()
	if got, err := m.State(within(t)); got != want || err != nil {
		t.Errorf("State = %q, %v, want %q", got, err, want)
	}
}

func wait(t *testing.T, m vmm.Machine) vmm.Exit {
	t.Helper()
	exit, err := m.Wait(within(t))
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	return exit
}

// copyOf returns a handle as another process would read it.
func copyOf(t *testing.T, h vmm.Handle) vmm.Handle {
	t.Helper()
	data, err := json.Marshal(h)
	if err != nil {
		t.Fatalf("the handle cannot be written: %v", err)
	}
	var c vmm.Handle
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatalf("the handle cannot be read: %v", err)
	}
	return c
}

// console waits until the console's log has some text.
func console(t *testing.T, l vmm.Launch, text string) {
	t.Helper()
	path := filepath.Join(l.Dir, l.Files.Console)
	eventually(t, "console of "+l.Name, func() bool {
		data, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(data), strings.TrimSpace(text))
	})
}
