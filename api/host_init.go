package api

import (
	"context"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/helper"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

const (
	opHostInit  = "host.init"
	opHostClean = "host.clean"
	opHostReset = "host.reset"

	// hostSubject is what these work on: one at a time.
	hostSubject = "this host"
	hostID      = "host"

	// setupKey is where the changes of init stand, with what was before.
	setupKey = "host.setup"
)

// hostSetup is what init has made of the host.
type hostSetup struct {
	At      string        `json:"at"` // of the last init
	Changes []host.Change `json:"changes"`
}

// HostInitResult is what init has changed of the host, and what it could not.
type HostInitResult struct {
	Changes []HostChange  `json:"changes"` // none where all was right
	Skipped []HostProblem `json:"skipped"` // what this host has no place for
	Next    []string      `json:"next"`    // commands to go on with
}

// hostStep brings one setting of the host to what init wants. Reverting restores what
// was before, unless somebody has changed it since.
type hostStep struct {
	c      *core
	Change host.Change `json:"change"`
}

func (s *hostStep) Kind() string { return "setting" }

func (s *hostStep) Apply(ctx context.Context) error {
	return hostError(s.c.machine().Apply(ctx, s.Change), "set", s.Change.Setting)
}

func (s *hostStep) Revert(ctx context.Context) error {
	return hostError(s.c.machine().Restore(ctx, s.Change), "restore", s.Change.Setting)
}

func hostError(err error, what string, s host.Setting) error {
	if err == nil {
		return nil
	}
	return mvm.Errorf(mvm.KindOf(err), "cannot %s the %s: %w", what, s, err).WithHint("see what is there; 'mvm host init' and 'mvm host reset' may be run again")
}

// Init sets the host up: IP forwarding, kernel modules, the group whose members may
// make networks and VMs, the helper that does it for them, the boot unit, and the
// default network. What is right stays as it is, so that it may be run again; it
// either ends or leaves everything as it was. What was before is kept for Reset.
func (o *HostOperation) Init(ctx context.Context, opts ...Option) (*HostInitResult, error) {
	return o.core.setUpHost(ctx, options(opts).progress, true)
}

// setUpHost is Init, with the default network or without.
func (c *core) setUpHost(ctx context.Context, progress mvm.ProgressFunc, withNetwork bool) (*HostInitResult, error) {
	if !c.isRoot() {
		return nil, &mvm.NeedsInteraction{What: "setting up the host needs root", Command: []string{"sudo", "mvm", "host", "init"}}
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	progress.Send("host", "comparing the host with what mvm needs")
	plan, err := c.planHost(ctx)
	if err != nil {
		return nil, mvm.Wrap(err, "set up", hostSubject)
	}
	res := &HostInitResult{Changes: []HostChange{}, Skipped: append([]HostProblem{}, plan.skipped...), Next: []string{}}
	if err := c.initHost(ctx, plan); err != nil {
		return nil, mvm.Wrap(err, "set up", hostSubject)
	}
	for _, ch := range plan.changes {
		res.Changes = append(res.Changes, changeText(ch))
	}
	if withNetwork {
		progress.Send("network", "bringing up the default network")
		changes, err := c.bringUpDefault(ctx, st)
		if err != nil {
			return nil, err
		}
		for _, ch := range changes {
			res.Changes = append(res.Changes, HostChange(ch))
		}
	}
	if members, err := plan.machine.GroupMembers(helper.Group); err == nil && len(members) == 0 && plan.has(helper.Path) {
		res.Next = append(res.Next, "usermod -aG "+helper.Group+" USER")
	}
	return res, nil
}

// has reports whether a setting is wanted.
func (p *hostPlan) has(name string) bool {
	return slices.ContainsFunc(slices.Concat(p.changes, p.kept), func(ch host.Change) bool { return ch.Name == name })
}

// initHost makes the changes of a plan, and keeps what was before.
func (c *core) initHost(ctx context.Context, plan *hostPlan) error {
	var steps []op.Step
	for _, ch := range plan.changes {
		steps = append(steps, &hostStep{c: c, Change: ch})
	}
	return c.journal.Run(ctx, op.Op{
		Kind: opHostInit, Subject: hostSubject, SubjectID: hostID, Steps: steps,
		Commit: func(tx *store.Tx) error {
			setup, err := readSetup(ctx, tx.Queries)
			if err != nil {
				return err
			}
			setup.merge(plan)
			setup.At = now()
			return tx.SetHostState(ctx, setupKey, setup)
		},
	})
}

// readSetup reads what init has made of the host. A network may have turned on
// forwarding before; that counts.
func readSetup(ctx context.Context, q store.Queries) (*hostSetup, error) {
	s := &hostSetup{}
	if _, err := q.GetHostState(ctx, setupKey, s); err != nil {
		return nil, err
	}
	forwarding := host.Setting{Kind: host.Sysctl, Name: sysctlForward}
	var before string
	known, err := q.GetHostState(ctx, forwardingBefore, &before)
	if err != nil {
		return nil, err
	}
	if known && s.find(forwarding) < 0 {
		first := host.Change{Setting: forwarding, Old: host.State{Exists: true, Data: before}, New: host.State{Exists: true, Data: "1"}}
		s.Changes = append([]host.Change{first}, s.Changes...)
	}
	return s, nil
}

func (s *hostSetup) find(of host.Setting) int {
	return slices.IndexFunc(s.Changes, func(ch host.Change) bool { return ch.Setting == of })
}

// merge adds the changes of another init. What was there before the first one stays
// known, unless somebody has changed it in between: then that is what was before.
func (s *hostSetup) merge(p *hostPlan) {
	for _, ch := range p.changes {
		ch.From = ""
		i := s.find(ch.Setting)
		if i < 0 {
			s.Changes = append(s.Changes, ch)
			continue
		}
		if s.Changes[i].New == ch.Old { // ours, of an earlier version
			ch.Old = s.Changes[i].Old
		}
		s.Changes[i] = ch
	}
}

// bringUpDefault makes the default network, if there is none, and brings it up.
func (c *core) bringUpDefault(ctx context.Context, st *store.Store) ([]network.Change, error) {
	n, _, err := c.defaultNetwork(ctx, st)
	if err != nil {
		return nil, err
	}
	vms, err := st.ListVMs(ctx)
	if err != nil {
		return nil, err
	}
	return c.ensureAndRecord(ctx, networkSpecFor(n, vms...))
}
