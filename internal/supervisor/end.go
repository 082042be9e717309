package supervisor

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// EndedToken marks the process that Spec.Ended starts, as Token marks the others.
func EndedToken(vmID string) string { return "mvm-ended-" + vmID }

// leaveLimit is how long a supervisor has to write down its VMM's end.
const leaveLimit = 5 * time.Second

// End ends whatever runs for a VM, found by its tokens: the VMM first, by SIGTERM
// and after grace by SIGKILL (at once with grace 0), then its supervisor, which
// has a moment to write down how the VMM ended, then its servers and what Spec.Ended
// started. It leaves the calling process alone. Ending what has ended is fine.
func End(ctx context.Context, vmID string, grace time.Duration) error {
	// Twice: a supervisor that was just about to start its VMM shows no VMM yet.
	var errs []error
	for range 2 {
		ids, err := proc.FindByArg(Token(vmID))
		if err != nil {
			return err
		}
		var supervisors []proc.Identity
		vmms := 0
		for _, id := range ids {
			if isSupervisor(id) {
				supervisors = append(supervisors, id)
				continue
			}
			vmms++
			errs = append(errs, proc.Kill(ctx, id, grace))
		}
		for _, id := range supervisors {
			if vmms > 0 {
				soon, cancel := context.WithTimeout(ctx, leaveLimit)
				_ = proc.WaitExit(soon, id)
				cancel()
			}
			errs = append(errs, proc.Kill(ctx, id, 0))
		}
	}
	errs = append(errs, EndServers(ctx, vmID))
	ids, err := proc.FindByArg(EndedToken(vmID))
	errs = append(errs, err)
	for _, id := range ids {
		errs = append(errs, proc.Kill(ctx, id, 0))
	}
	return errors.Join(errs...)
}

// isSupervisor reports whether a process with a VM's token is its supervisor.
func isSupervisor(id proc.Identity) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(id.PID) + "/cmdline")
	return err == nil && bytes.Contains(data, []byte("\x00"+Command+"\x00"))
}

// notify starts what is to be told of the end. A VM that was removed with its
// directory has nobody to tell; a program that cannot be started is missed by
// nobody: the next command finds the VMM gone by itself.
func (v *supervised) notify() {
	if len(v.spec.Ended) == 0 {
		return
	}
	if _, err := os.Stat(filepath.Join(v.spec.Dir, vmm.ExitFile)); err != nil {
		return
	}
	_, _, _ = proc.StartDetached(proc.Spec{Path: v.spec.Ended[0], Args: v.spec.Ended[1:], Dir: "/", Env: os.Environ()})
}
