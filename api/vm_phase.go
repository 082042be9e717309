package api

import (
	"context"
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// stopStep ends a VM. Taken back it leaves one that runs alone; one that does not
// run any more becomes what a stopped VM is, without a tap.
type stopStep struct {
	c    *core
	VMID string `json:"vm_id"`
	Tap  string `json:"tap"`

	do func(context.Context) error
}

func (s *stopStep) Kind() string { return "stop" }

func (s *stopStep) Apply(ctx context.Context) error { return s.do(ctx) }

func (s *stopStep) Revert(ctx context.Context) error {
	vm, err := s.c.st.GetVM(ctx, s.VMID)
	if errors.Is(err, mvm.ErrNotFound) || err == nil && alive(vm) {
		return nil
	}
	if err != nil {
		return err
	}
	if vm != nil {
		err = s.c.endServer(ctx, vm)
		_, _ = s.c.refreshDNS(ctx, vm.NetworkID, vm.ID)
	}
	return errors.Join(err, (&tapStep{c: s.c, VMID: s.VMID, Name: s.Tap}).Revert(ctx))
}

// phaseStep pauses a VM or has it go on. Taken back it does the other.
type phaseStep struct {
	c    *core
	VMID string   `json:"vm_id"`
	Verb mvm.Verb `json:"verb"`

	do func(context.Context) error
}

func (s *phaseStep) Kind() string { return "phase" }

func (s *phaseStep) Apply(ctx context.Context) error { return s.do(ctx) }

func (s *phaseStep) Revert(ctx context.Context) error {
	vm, err := s.c.st.GetVM(ctx, s.VMID)
	if err != nil {
		return ignoreGone(err)
	}
	m, err := s.c.attach(ctx, vm)
	if err != nil {
		return ignoreGone(err)
	}
	defer func() { _ = m.Close() }()
	p, ok := m.(vmm.Pauser)
	if !ok {
		return nil // it did nothing then
	}
	state, err := m.State(ctx)
	switch {
	case err != nil:
	case s.Verb == mvm.VerbPause && state == vmm.StatePaused:
		err = p.Resume(ctx)
	case s.Verb == mvm.VerbResume && state == vmm.StateRunning:
		err = p.Pause(ctx)
	}
	return ignoreGone(err)
}

// ignoreGone drops the error that says that a VM, or its VMM, is no more.
func ignoreGone(err error) error {
	if errors.Is(err, mvm.ErrNotFound) {
		return nil
	}
	return err
}
