package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// listed is how many VMs the list has.
const listed = 1000

// BenchmarkList compares `vm ls` of 1,000 VMs, each tenth of which runs, with
// `version`, which does nothing.
func BenchmarkList(tb *testing.B) {
	b := &bench{t: tb, bin: os.Getenv("MVM_TEST_MVM"), cache: tb.TempDir()}
	if b.bin == "" {
		b.bin = "../../bin/mvm"
	}
	abs, err := filepath.Abs(b.bin)
	if err != nil {
		tb.Fatal(err)
	}
	b.bin = abs
	fillStore(tb, filepath.Join(b.cache, "mvmdb.db"))
	if n := len(b.list()); n != listed {
		tb.Fatalf("vm ls shows %d VMs", n)
	}
	var list, nothing []time.Duration
	var listCPU, nothingCPU []time.Duration // what other work on the machine changes least
	for range 4 * rounds {
		took, cpu := b.cost("vm", "ls")
		list, listCPU = append(list, took), append(listCPU, cpu)
		took, cpu = b.cost("version")
		nothing, nothingCPU = append(nothing, took), append(nothingCPU, cpu)
	}
	tb.ReportMetric(float64((median(listCPU)-median(nothingCPU)).Microseconds())/1000, "apart-cpu-ms")
	tb.ReportMetric(float64(median(list).Microseconds())/1000, "ls-ms")
	tb.ReportMetric(float64(median(nothing).Microseconds())/1000, "version-ms")
	tb.ReportMetric(float64((median(list)-median(nothing)).Microseconds())/1000, "apart-ms")
}

// cost runs a command and returns the time that passed and that of CPUs.
func (b *bench) cost(args ...string) (took, cpu time.Duration) {
	b.t.Helper()
	cmd := exec.Command(b.bin, args...)
	cmd.Env = append(os.Environ(), "MVM_CACHE_DIR="+b.cache, "MVM_CONFIG_DIR="+b.cache+"/config")
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("mvm %s: %v", args, err)
	}
	return time.Since(begin), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

func (b *bench) list() []vm {
	var all []vm
	if err := json.Unmarshal([]byte(b.mvm("vm", "ls", "--json")), &all); err != nil {
		b.t.Fatal(err)
	}
	return all
}

// fillStore makes the rows of the VMs. Those that run have this process for a VMM:
// it is alive, and looking at it costs what it costs with a real one.
func fillStore(tb testing.TB, path string) {
	ctx := tb.Context()
	st, err := store.Open(ctx, path)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	handle, err := json.Marshal(vmm.Handle{Version: 1, Driver: "qemu", VMM: proc.Self(), Supervisor: proc.Self()})
	if err != nil {
		tb.Fatal(err)
	}
	err = st.Tx(ctx, func(tx *store.Tx) error {
		for i := range listed {
			v := &mvm.VMInstanceItem{
				ID: fmt.Sprintf("%016x", i), Name: fmt.Sprintf("vm-%d", i), Status: mvm.StatusStopped, Hypervisor: "qemu", Accel: "tcg",
				IPv4: fmt.Sprintf("10.0.%d.%d", i/250, i%250+2), MAC: fmt.Sprintf("02:FC:00:00:%02X:%02X", i/256, i%256), TapDevice: fmt.Sprintf("mvm-t%d", i),
				VCPUCount: 1, MemSizeMiB: 512,
			}
			if i%10 == 0 {
				v.Status, v.PID, v.Handle = mvm.StatusRunning, os.Getpid(), handle
			}
			if err := tx.InsertVM(ctx, v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}
