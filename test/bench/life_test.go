package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// BenchmarkLife measures what is done with a VM that runs: pause and resume against a
// command that does nothing, a snapshot against a copy of the files that it writes, a
// restore against a boot of the same VM; how long the end of a VMM goes unnoticed, and
// what a supervisor has of memory.
func BenchmarkLife(tb *testing.B) {
	b := newBench(tb)
	var boot, pause, resume, nothing, snapshot, copied, restore, notice []time.Duration
	for range rounds {
		boot = append(boot, b.timed("vm", "create", "bench", "--image", "tiny", "--mem", "256", "--wait"))
		pause = append(pause, b.timed("vm", "pause", "bench"))
		resume = append(resume, b.timed("vm", "resume", "bench"))
		nothing = append(nothing, b.timed("version"))
		snapshot = append(snapshot, b.timed("snapshot", "create", "bench", "--name", "warm"))
		copied = append(copied, b.copySnapshot())
		restore = append(restore, b.timed("snapshot", "restore", "warm", "copy", "--resume"))
		notice = append(notice, b.untilNoticed("copy"))
		b.mvm("vm", "rm", "--force", "copy", "bench")
		b.mvm("snapshot", "rm", "-f", "warm")
	}
	report := func(what string, took []time.Duration, against string, other []time.Duration) {
		fmt.Printf("%s: %s; %s: %s; ratio %.2f\n", what, median(took).Round(time.Millisecond), against, median(other).Round(time.Millisecond), float64(median(took))/float64(median(other)))
	}
	report("pause", pause, "version", nothing)
	report("resume, with the guest's clock set", resume, "version", nothing)
	report("snapshot of 256 MiB with its disk", snapshot, "a synced copy of its files", copied)
	report("restore as another VM, until it has its identity", restore, "create --wait", boot)
	fmt.Printf("the end of a VMM is in the store %s after it was killed, at most %s of %d (limit 1s)\n", median(notice).Round(time.Millisecond), slices.Max(notice).Round(time.Millisecond), rounds)
	b.memory()
}

func (b *bench) timed(args ...string) time.Duration {
	b.t.Helper()
	begin := time.Now()
	b.mvm(args...)
	return time.Since(begin)
}

// copySnapshot copies the files of the snapshot, as cp does, and syncs them.
func (b *bench) copySnapshot() time.Duration {
	b.t.Helper()
	var s struct {
		Files struct {
			Directory string `json:"directory"`
		} `json:"files"`
	}
	if err := json.Unmarshal([]byte(b.mvm("snapshot", "inspect", "warm", "--json")), &s); err != nil {
		b.t.Fatal(err)
	}
	to := filepath.Join(b.cache, "copied")
	begin := time.Now()
	b.ns.Run("cp", "-r", "--reflink=never", s.Files.Directory, to)
	b.ns.Run("sync", "-f", to)
	took := time.Since(begin)
	if err := os.RemoveAll(to); err != nil {
		b.t.Fatal(err)
	}
	return took
}

// untilNoticed kills the VMM of a VM and returns when the store says so.
func (b *bench) untilNoticed(name string) time.Duration {
	b.t.Helper()
	st, err := store.Open(b.t.Context(), filepath.Join(b.cache, "mvmdb.db"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	row := func() *mvm.VMInstanceItem {
		all, err := st.ListVMs(b.t.Context())
		if err != nil {
			b.t.Fatal(err)
		}
		return all[slices.IndexFunc(all, func(v *mvm.VMInstanceItem) bool { return v.Name == name })]
	}
	pid := row().PID
	begin := time.Now()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	for row().Status != mvm.StatusCrashed {
		if time.Since(begin) > time.Minute {
			b.t.Fatal("nobody notices")
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(begin)
}

// memory tells what the supervisors of two VMs have, once nothing moves in them.
func (b *bench) memory() {
	b.t.Helper()
	b.mvm("vm", "create", "bench", "--image", "tiny", "--mem", "256", "--count", "2", "--wait", "--wait-timeout", "10m")
	defer b.mvm("vm", "rm", "--force", "bench-1", "bench-2")
	time.Sleep(10 * time.Second)
	var all []struct {
		Relay *int `json:"relay_pid"`
	}
	if err := json.Unmarshal([]byte(b.mvm("vm", "ls", "--json")), &all); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range all {
		if v.Relay == nil {
			b.t.Fatal("a VM has no supervisor")
		}
		data, err := os.ReadFile("/proc/" + strconv.Itoa(*v.Relay) + "/smaps_rollup")
		if err != nil {
			b.t.Fatal(err)
		}
		var pss, private int
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			kib, _ := strconv.Atoi(f[1])
			switch f[0] {
			case "Pss:":
				pss = kib
			case "Private_Clean:", "Private_Dirty:":
				private += kib
			}
		}
		fmt.Printf("supervisor: PSS %.1f MiB, private %.1f MiB (limit 8 MiB)\n", float64(pss)/1024, float64(private)/1024)
	}
}
