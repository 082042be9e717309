package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
)

func TestSmoke(t *testing.T) {
	testenv.Require(t, "qemu")
	d := New(Options{Launcher: supervisor.Launcher{Exe: "/proc/self/exe"}})
	l := vmm.Launch{ID: "abc0", Name: "smoke", Dir: t.TempDir(), Binary: host.Find(program), Accel: "tcg", Kernel: vmmtest.TinyGuest(t, true), VCPUs: 1, MemMiB: 128,
		Agent: true, Files: vmm.Files{API: "qmp.sock", Log: "qemu.log", Console: "console.log", ConsoleSocket: "console.sock", Agent: "agent.sock"}}
	t0 := time.Now()
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(time.Since(t0))
	t.Log(m.State(t.Context()))
	t.Log(m.Wait(t.Context()))
	t.Log(time.Since(t0))
	b, _ := os.ReadFile(filepath.Join(l.Dir, "console.log"))
	if !bytes.Contains(b, []byte("hello")) {
		t.Errorf("%q", b)
	}
	b, _ = os.ReadFile(filepath.Join(l.Dir, "qemu.log"))
	t.Logf("%s", b)
}
