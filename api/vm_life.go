package api

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// parallelVerbs bounds how many VMs one command moves at once. Most of the time
// goes into waiting for guests.
const parallelVerbs = 16

// each applies a verb to every VM selected, and reports on each. VMs that are
// selected twice get it twice, one after the other.
func (o *VMOperation) each(ctx context.Context, what string, in VMInput, f func(context.Context, *store.Store, *mvm.VMInstanceItem) error) (mvm.Batch[*mvm.VMInstanceItem], error) {
	var batch mvm.Batch[*mvm.VMInstanceItem]
	if len(in.Identifiers) == 0 {
		return batch, mvm.Errorf(mvm.ErrInvalid, "no VM was named").WithHint("name one or more; see 'mvm vm ls'")
	}
	st, err := o.core.open(ctx)
	if err != nil {
		return batch, err
	}
	batch.Entries = make([]mvm.BatchEntry[*mvm.VMInstanceItem], len(in.Identifiers))
	places := map[string][]*mvm.BatchEntry[*mvm.VMInstanceItem]{} // by VM
	for i, sel := range in.Identifiers {
		e := &batch.Entries[i]
		e.Identifier = sel
		if e.Item, e.Err = o.core.findVM(ctx, st, sel); e.Err == nil {
			places[e.Item.ID] = append(places[e.Item.ID], e)
		}
	}
	var g errgroup.Group
	g.SetLimit(parallelVerbs)
	for _, same := range places {
		g.Go(func() error {
			for n, e := range same {
				if n > 0 {
					e.Item, e.Err = o.core.findVM(ctx, st, e.Identifier)
				}
				if e.Err == nil {
					e.Err = mvm.Wrap(f(ctx, st, e.Item), what, e.Item.Name)
				}
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in the entries
	return batch, batch.Err()
}

// Start starts stopped or crashed VMs; what is missing of their network is mended.
func (o *VMOperation) Start(ctx context.Context, in VMInput, opts ...Option) (mvm.Batch[*mvm.VMInstanceItem], error) {
	if err := in.Wait.Validate(); err != nil {
		return mvm.Batch[*mvm.VMInstanceItem]{}, err
	}
	progress := options(opts).progress
	return o.each(ctx, "start VM", in, func(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) error {
		if err := o.core.requireRoot("starting a VM"); err != nil {
			return err
		}
		progress.Send("start", "starting "+vm.Name)
		if err := o.core.start(ctx, st, vm, "start"); err != nil {
			return err
		}
		if in.Wait == WaitNone {
			return nil
		}
		progress.Send("boot", waitingFor(vm.Name, in.Wait))
		return o.core.waitFor(ctx, vm, in.Wait, in.WaitLimit)
	})
}

// claimed is what the undoing of a verb needs: the phase that the VM had, and why.
type claimed struct {
	Status mvm.VMStatus `json:"status"`
	Reason string       `json:"reason"`
}

// start starts a VM as a user asks for it: what its restart policy had in mind is
// over.
func (c *core) start(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, cause string) error {
	vm.Options.RestartCount, vm.Options.RestartDelayMS = 0, 0
	return c.startIf(ctx, st, vm, cause, func(*mvm.VMInstanceItem) error { return nil })
}

// startIf starts a VM if fit says so of its row, in the transaction that claims it.
func (c *core) startIf(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, cause string, fit func(*mvm.VMInstanceItem) error) error {
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return err
	}
	if !mvm.TransitionOf(mvm.VerbStart).Allows(vm.Status) {
		return refusal(mvm.VerbStart, vm)
	}
	p, err := c.planStart(ctx, st, inv, vm)
	if err != nil {
		return err
	}
	if p.initrd, err = c.buildInitramfs(ctx, p.kernel, p.bootFSTypes()); err != nil {
		return err
	}
	undo, err := json.Marshal(claimed{vm.Status, vm.StatusReason})
	if err != nil {
		return err
	}
	return c.journal.Run(ctx, op.Op{
		Kind: opStart, Subject: vm.Name, SubjectID: vm.ID, UndoData: undo,
		Reserve: func(tx *store.Tx) error {
			before, err := tx.ClaimVM(ctx, vm.ID, mvm.VerbStart)
			if err == nil {
				err = fit(before)
			}
			if err != nil {
				return err
			}
			if err := p.loadVolumes(ctx, tx); err != nil { // one may have come or gone since the plan was made
				return err
			}
			if err := p.reservePortOf(ctx, tx); err != nil {
				return err
			}
			return p.reserveJailOf(ctx, tx)
		},
		// A VMM that a crash lost, and a tap that outlived its VM, go first.
		Steps:  append([]op.Step{&clearStep{c: c, VMID: vm.ID, Tap: vm.TapDevice}}, p.startSteps()...),
		Commit: func(tx *store.Tx) error { return p.commitRunning(ctx, tx, cause) },
	})
}

// clearStep removes what an earlier run of the VM may have left running.
type clearStep struct {
	c    *core
	VMID string `json:"vm_id"`
	Tap  string `json:"tap"`
}

func (s *clearStep) Kind() string { return "clear" }

func (s *clearStep) Apply(ctx context.Context) error { return s.c.killVMM(ctx, s.VMID, 0) }

func (s *clearStep) Revert(context.Context) error { return nil }

// Stop stops VMs: it asks the guest to shut down, then sends SIGTERM and SIGKILL
// to the VMM, each after its time limit: settings.vm stop_timeout_sec, term_timeout_sec
// and kill_timeout_sec. With Force the guest is not asked.
func (o *VMOperation) Stop(ctx context.Context, in VMInput, opts ...Option) (mvm.Batch[*mvm.VMInstanceItem], error) {
	progress := options(opts).progress
	return o.each(ctx, "stop VM", in, func(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) error {
		if err := o.core.requireRoot("stopping a VM"); err != nil {
			return err
		}
		progress.Send("stop", "stopping "+vm.Name)
		return o.core.stop(ctx, st, vm, in)
	})
}

func (c *core) stop(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, in VMInput) error {
	if waitsForRestart(vm) {
		return c.cancelRestart(ctx, st, vm)
	}
	if vm.Status == mvm.StatusStopped || vm.Status == mvm.StatusCrashed {
		return refusal(mvm.VerbStop, vm)
	}
	return c.endVM(ctx, st, vm, in, "stopped as asked")
}

// endVM stops a VM under a claim.
func (c *core) endVM(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, in VMInput, cause string) error {
	step := &stopStep{c: c, VMID: vm.ID, Tap: vm.TapDevice, do: func(ctx context.Context) error { return c.end(ctx, st, vm, in) }}
	return c.claimFor(ctx, vm, mvm.VerbStop, mvm.StatusStopped, cause, step)
}

// end shuts the guest down and removes its tap; the VM's directory stays.
func (c *core) end(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, in VMInput) error {
	set, err := loadSettings(ctx, st)
	if err != nil {
		return err
	}
	m, err := c.attach(ctx, vm)
	switch {
	case errors.Is(err, vmm.ErrGone):
	case err != nil:
		return err
	default:
		defer func() { _ = m.Close() }()
		if !in.Force {
			limit := in.Timeout
			if limit == 0 {
				limit = time.Duration(set.num("settings.vm", "stop_timeout_sec")) * time.Second
			}
			c.askToPowerOff(ctx, vm, m, limit)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		vm.ExitCode = exitCode(ctx, m)
	}
	grace := time.Duration(set.num("settings.vm", "term_timeout_sec")) * time.Second
	if in.Force {
		grace = 0
	}
	if err := c.killVMM(ctx, vm.ID, grace); err != nil {
		return err
	}
	if exit, err := vmm.ReadExit(c.paths.vm(vm.ID)); err == nil && exit.Code >= 0 && vm.ExitCode == nil {
		vm.ExitCode = &exit.Code
	}
	err = errors.Join((&tapStep{c: c, VMID: vm.ID, Name: vm.TapDevice}).Revert(ctx), c.endServer(ctx, vm))
	_, _ = c.refreshDNS(ctx, vm.NetworkID, vm.ID) // its names are a matter of the next VM's
	return err
}

// Remove stops VMs and removes all that belongs to them: process, tap, rules,
// files, lease and row. A VM that another command works on, one that is being made
// say, gives ErrBusy; with Force that command is waited for, up to a minute.
func (o *VMOperation) Remove(ctx context.Context, in VMInput, opts ...Option) (mvm.Batch[*mvm.VMInstanceItem], error) {
	progress := options(opts).progress
	return o.each(ctx, "remove VM", in, func(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) error {
		if err := o.core.requireRoot("removing a VM"); err != nil {
			return err
		}
		progress.Send("remove", "removing "+vm.Name)
		c := o.core
		if (vm.Status == mvm.StatusRunning || vm.Status == mvm.StatusPaused) && !in.Force { // volumes stay: the guest is to write them out
			if err := c.endVM(ctx, st, vm, in, "stopped to be removed"); err != nil {
				return err
			}
		}
		if in.Force {
			return c.removeForced(ctx, st, vm)
		}
		return c.removeVM(ctx, vm, nil)
	})
}

// removeVM removes a VM and all that belongs to it. From here it only goes
// forward: each part may be gone already, and a crash is finished by the next
// command. A VM in one of the phases to spare is refused.
func (c *core) removeVM(ctx context.Context, vm *mvm.VMInstanceItem, spare []mvm.VMStatus) error {
	steps := []op.Step{&vmmStep{c: c, VMID: vm.ID}, &tapStep{c: c, VMID: vm.ID, Name: vm.TapDevice}, &dnsStep{c: c, NetworkID: vm.NetworkID, VMID: vm.ID}, &dirStep{c: c, VMID: vm.ID}}
	if vm.CloudInitMode == mvm.CloudInitNet {
		steps = append(steps, &nocloudStep{c: c, VMID: vm.ID})
	}
	return c.journal.Forward(ctx, op.Op{
		Kind: opRemove, Subject: vm.Name, SubjectID: vm.ID,
		Reserve: func(tx *store.Tx) error {
			before, err := tx.ClaimVM(ctx, vm.ID, mvm.VerbRemove)
			if err == nil && len(spare) > 0 && waitsForRestart(before) {
				return mvm.Errorf(mvm.ErrConflict, "it waits for its restart by now").WithHint("it was left alone; see 'mvm vm ls'")
			}
			if err == nil && slices.Contains(spare, before.Status) {
				return mvm.Errorf(mvm.ErrConflict, "it is %s by now", before.Status).WithHint("it was left alone; see 'mvm vm ls'")
			}
			return err
		},
		Steps: steps,
	})
}

// refusal says why a verb cannot start from the phase that the VM is in.
func refusal(v mvm.Verb, vm *mvm.VMInstanceItem) error {
	t := mvm.TransitionOf(v)
	names := ""
	for i, s := range t.From {
		if i > 0 {
			names += " or "
		}
		names += string(s)
	}
	hint := "see 'mvm vm ls'"
	switch vm.Status {
	case mvm.StatusStopped, mvm.StatusCrashed:
		hint = "start it with 'mvm vm start " + vm.Name + "'"
	case mvm.StatusRunning:
		hint = "stop it with 'mvm vm stop " + vm.Name + "'"
	}
	return mvm.Errorf(mvm.ErrConflict, "it is %s; it has to be %s", vm.Status, names).WithHint("%s", hint)
}

// Pause stops the vCPUs of running VMs; their memory stays.
func (o *VMOperation) Pause(ctx context.Context, in VMInput, _ ...Option) (mvm.Batch[*mvm.VMInstanceItem], error) {
	return o.each(ctx, "pause VM", in, func(ctx context.Context, _ *store.Store, vm *mvm.VMInstanceItem) error {
		return o.core.pauser(ctx, vm, mvm.VerbPause, mvm.StatusPaused, vmm.Pauser.Pause)
	})
}

// Resume has paused VMs go on.
func (o *VMOperation) Resume(ctx context.Context, in VMInput, _ ...Option) (mvm.Batch[*mvm.VMInstanceItem], error) {
	return o.each(ctx, "resume VM", in, func(ctx context.Context, _ *store.Store, vm *mvm.VMInstanceItem) error {
		return o.core.pauser(ctx, vm, mvm.VerbResume, mvm.StatusRunning, vmm.Pauser.Resume)
	})
}

func (c *core) pauser(ctx context.Context, vm *mvm.VMInstanceItem, verb mvm.Verb, success mvm.VMStatus, do func(vmm.Pauser, context.Context) error) error {
	if err := c.requireRoot("this"); err != nil {
		return err
	}
	if !mvm.TransitionOf(verb).Allows(vm.Status) {
		return refusal(verb, vm)
	}
	return c.claimFor(ctx, vm, verb, success, string(verb)+"d as asked", &phaseStep{c: c, VMID: vm.ID, Verb: verb, do: func(ctx context.Context) error {
		m, err := c.attach(ctx, vm)
		if err != nil {
			return err
		}
		defer func() { _ = m.Close() }()
		p, ok := m.(vmm.Pauser)
		if !ok {
			return mvm.Errorf(mvm.ErrUnsupported, "%s cannot %s a VM", vm.Hypervisor, verb).WithHint("use another --hypervisor")
		}
		if err := do(p, ctx); err != nil {
			return err
		}
		if verb == mvm.VerbResume {
			c.setClock(ctx, vm, m)
		}
		return nil
	}})
}

// setClock sets the guest's clock, which stood still while it was paused. A guest
// without an agent has to do that itself.
func (c *core) setClock(ctx context.Context, vm *mvm.VMInstanceItem, m vmm.Machine) {
	if !vm.HasAgent {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	login, err := c.agentLogin(vm)
	if err != nil {
		return
	}
	client, err := guest.Dial(ctx, c.dialAgent(vm, m), login)
	if err != nil {
		return
	}
	defer func() { _ = client.Close() }()
	_ = client.SetTime(ctx, time.Now()) // its own time service may do it later
}

// Reboot stops and starts VMs; name, addresses and disk stay.
func (o *VMOperation) Reboot(ctx context.Context, in VMInput, opts ...Option) (mvm.Batch[*mvm.VMInstanceItem], error) {
	if err := in.Wait.Validate(); err != nil {
		return mvm.Batch[*mvm.VMInstanceItem]{}, err
	}
	progress := options(opts).progress
	return o.each(ctx, "reboot VM", in, func(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) error {
		if err := o.core.requireRoot("rebooting a VM"); err != nil {
			return err
		}
		if !mvm.TransitionOf(mvm.VerbReboot).Allows(vm.Status) {
			return refusal(mvm.VerbReboot, vm)
		}
		progress.Send("stop", "stopping "+vm.Name)
		if err := o.core.endVM(ctx, st, vm, in, "stopped to be rebooted"); err != nil {
			return err
		}
		progress.Send("start", "starting "+vm.Name)
		if err := o.core.start(ctx, st, vm, "rebooted"); err != nil || in.Wait == WaitNone {
			return err
		}
		progress.Send("boot", waitingFor(vm.Name, in.Wait))
		return o.core.waitFor(ctx, vm, in.Wait, in.WaitLimit)
	})
}
