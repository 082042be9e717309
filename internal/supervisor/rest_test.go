package supervisor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A supervisor at rest takes 8 MiB at most, though nobody shares its program's pages:
// it is the only process of that file.
func TestSupervisorAtRest(t *testing.T) {
	if testing.Short() {
		t.Skip("builds mvm")
	}
	exe := filepath.Join(t.TempDir(), "mvm")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, "../../cmd/mvm").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	st, err := Spawn(t.Context(), Launcher{Exe: exe}, spec(t, "exec sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	dir := "/proc/" + strconv.Itoa(st.Supervisor.PID)
	const most = 8 << 10
	got := pss(t, dir)
	for end := time.Now().Add(4 * time.Minute); got > most; got = pss(t, dir) { // it gives back what the start took, and again each minute
		if time.Now().After(end) {
			t.Fatalf("a supervisor at rest takes %d KiB, more than %d", got, most)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// pss is a process's proportional share of memory in KiB, proc_pid_smaps(5).
func pss(t *testing.T, dir string) int64 {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "\nPss:")
	field := strings.Fields(rest)
	if len(field) == 0 {
		t.Fatalf("no PSS in %q", data)
	}
	n, err := strconv.ParseInt(field[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
