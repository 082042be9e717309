package api

import (
	"context"
	"encoding/json"
	"os"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// VMProblem is something that a VM lacks, and the remedy.
type VMProblem struct {
	What string `json:"what"`
	Hint string `json:"hint"`
}

// resupervise gives a VM that runs a new supervisor when it has lost its own. It is
// done by whichever command of root's looks at the VM first. A failure is no
// failure of that command: inspect tells what the VM lacks.
func (c *core) resupervise(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) {
	h, lost := unsupervised(vm)
	if !lost || !c.mayAct() {
		return
	}
	if ops, err := st.ListOps(ctx, vm.ID); err != nil || len(ops) > 0 {
		return // whoever works on it may be about to end it
	}
	why := "its supervisor was gone"
	if failure := supervisor.Failure(h.Dir); failure != "" {
		why += " (" + failure + ")"
	}
	id, err := supervisor.Adopt(ctx, c.launcher(), vm.ID, h.Dir, h.VMM)
	if err != nil {
		return
	}
	h.Supervisor = id
	data, err := json.Marshal(h)
	if err != nil {
		return
	}
	_ = st.Tx(ctx, func(tx *store.Tx) error {
		now, err := tx.GetVM(ctx, vm.ID)
		if err != nil {
			return err
		}
		if stored, err := handleOf(now); err != nil || stored.VMM != h.VMM || stored.Supervisor == id {
			return err // it was started anew, or another command was quicker
		}
		now.Handle, now.RelayPID = data, &id.PID
		if err := write(ctx, tx, now, store.EventAction, why+"; a new one looks after it"); err != nil {
			return err
		}
		*vm = *now
		return nil
	})
}

// unsupervised reports whether a VM runs without its supervisor.
func unsupervised(vm *mvm.VMInstanceItem) (vmm.Handle, bool) {
	h, err := handleOf(vm)
	return h, err == nil && h.Supervisor.PID > 0 && runs(vm) && proc.Alive(h.VMM) && !proc.Alive(h.Supervisor)
}

func runs(vm *mvm.VMInstanceItem) bool {
	return vm.Status == mvm.StatusRunning || vm.Status == mvm.StatusPaused
}

// syncHint mends what several VMs share.
const syncHint = "mend it with 'mvm network sync'"

// problems are what a VM lacks, as far as this process may see it. What start
// makes anew is no problem of a VM that does not run. Relations of vm are resolved.
func (c *core) problems(ctx context.Context, vm *mvm.VMInstanceItem, taps []network.Tap) ([]VMProblem, error) {
	found := []VMProblem{}
	add := func(what, hint string) {
		if what != "" {
			found = append(found, VMProblem{what, hint})
		}
	}
	if _, lost := unsupervised(vm); lost {
		add("its supervisor is gone: its console is not kept, and how it ends will not be known", "any 'mvm vm' command on it, as root, gives it a new one")
	}
	remove := "remove it with 'mvm vm rm " + vm.Name + "'"
	if vm.Status != mvm.StatusStarting {
		add(missing("disk", vm.RootfsPath), remove)
	}
	if vm.Image != nil {
		add(missing("image", c.paths.abs(vm.Image.Path)), "get it again with 'mvm image pull --force "+vm.Image.Type+"'")
	}
	if vm.Kernel != nil {
		add(missing("kernel", c.paths.abs(vm.Kernel.Path)), "see 'mvm kernel ls'")
	}
	switch {
	case vm.Network == nil:
		add("its network is gone", remove)
		return found, nil
	case !runs(vm):
		return found, nil
	}
	seen, err := c.net.Observe(ctx, networkSpec(vm.Network))
	if err != nil {
		return nil, err
	}
	add(bridgeProblem(vm.Network, seen), syncHint)
	add(tapProblem(vm, taps, seen.RulesUnknown))
	return found, nil
}

// missing says that a file of a VM cannot be had, or nothing.
func missing(what, path string) string {
	if _, err := os.Stat(path); err != nil {
		return "its " + what + " is missing: " + err.Error()
	}
	return ""
}

// bridgeProblem says what is wrong with the network of a VM that runs.
func bridgeProblem(n *mvm.NetworkItem, seen network.Observed) string {
	switch {
	case seen.Foreign:
		return "the bridge " + n.Bridge + " of its network belongs to something else"
	case !seen.Exists:
		return "the bridge " + n.Bridge + " of its network is gone"
	case !seen.Active():
		return "the bridge " + n.Bridge + " of its network is down, or has not its address"
	case !seen.Right && !seen.RulesUnknown:
		return "firewall rules or settings of its network are missing or changed"
	}
	return ""
}

// tapProblem says what is wrong with the tap of a VM that runs.
func tapProblem(vm *mvm.VMInstanceItem, taps []network.Tap, unknown bool) (what, hint string) {
	for _, t := range taps {
		if t.Name != vm.TapDevice {
			continue
		}
		switch {
		case t.Bridge != vm.Network.Bridge:
			return "its tap " + t.Name + " is not on the bridge", syncHint
		case !t.Up:
			return "its tap " + t.Name + " is down", syncHint
		case !t.Guarded && !unknown:
			return "the rules against forged addresses are missing on its tap " + t.Name, syncHint
		}
		return "", ""
	}
	return "its tap " + vm.TapDevice + " is gone, and with it its network", "start it anew with 'mvm vm reboot " + vm.Name + "'"
}
