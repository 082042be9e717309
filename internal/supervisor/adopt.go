package supervisor

import (
	"context"
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
)

// Adopt starts a supervisor for a VMM that has lost its own, and returns who it is;
// where one is there already, that is returned. The console goes on where it stood,
// as far as the kernel kept what was printed meanwhile; streams to the guest that
// the lost one held are gone. The new one is not the VMM's parent: the exit status
// it learns only where proc.WaitStatus does.
func Adopt(ctx context.Context, l Launcher, vmID, dir string, vmm proc.Identity) (proc.Identity, error) {
	if there, err := find(vmID); err != nil || len(there) > 0 {
		return first(there), err
	}
	id, err := json.Marshal(vmm)
	if err != nil {
		return proc.Identity{}, mvm.Errorf(mvm.ErrInvalid, "the VMM's identity: %w", err)
	}
	started, self, err := l.execute(ctx, vmID, dir, string(id))
	if err == nil {
		return started.Supervisor, nil
	}
	if ctx.Err() != nil && self.PID > 0 {
		_ = proc.Signal(self, unix.SIGKILL)
	}
	return proc.Identity{}, err
}

// find returns the supervisors of a VM.
func find(vmID string) ([]proc.Identity, error) {
	ids, err := proc.FindByArg(Token(vmID))
	var found []proc.Identity
	for _, id := range ids {
		if isSupervisor(id) {
			found = append(found, id)
		}
	}
	return found, err
}

func first(ids []proc.Identity) proc.Identity {
	if len(ids) == 0 {
		return proc.Identity{}
	}
	return ids[0]
}

// adopt takes over the VMM that runs.
func (v *supervised) adopt(running string) error {
	if err := json.Unmarshal([]byte(running), &v.id); err != nil {
		return err
	}
	if !proc.Alive(v.id) {
		return fmt.Errorf("take over the VMM: %w", proc.ErrGone)
	}
	return v.prepare()
}
