package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/helper"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// HostCleanInput says how far Clean and Reset go.
type HostCleanInput struct {
	Force bool // also where VMs run, whose network is gone until they are started again
}

// HostCleanResult is what was removed from the host or put back on it, and what was
// left because somebody has changed it since.
type HostCleanResult struct {
	Changes []HostChange  `json:"changes"`
	Left    []HostProblem `json:"left"`
}

// Clean removes all networking of ours from the host: bridges, taps and rules, those
// of other users and caches too. Networks stay in the store, and are brought up again
// by 'network sync' or with their next VM. Sysctls, group and helper stay.
func (o *HostOperation) Clean(ctx context.Context, in HostCleanInput, _ ...Option) (*HostCleanResult, error) {
	c := o.core
	res, steps, err := c.planClean(ctx, in, "clean")
	if err != nil {
		return nil, mvm.Wrap(err, "clean", hostSubject)
	}
	err = c.journal.Forward(ctx, op.Op{Kind: opHostClean, Subject: hostSubject, SubjectID: hostID, Steps: steps})
	return res, mvm.Wrap(err, "clean", hostSubject)
}

// Reset is Clean, and takes back what Init has changed: everything is as it was
// before, but for what somebody has changed since, which is left and told.
func (o *HostOperation) Reset(ctx context.Context, in HostCleanInput, _ ...Option) (*HostCleanResult, error) {
	c := o.core
	res, steps, err := c.planClean(ctx, in, "reset")
	if err != nil {
		return nil, mvm.Wrap(err, "reset", hostSubject)
	}
	setup, err := readSetup(ctx, c.st.Queries)
	if err != nil {
		return nil, err
	}
	for _, ch := range slices.Backward(setup.Changes) {
		if err := c.planSettingBack(ch, res); err != nil {
			return nil, mvm.Wrap(err, "reset", hostSubject)
		}
		steps = append(steps, &hostStep{c: c, Change: ch})
	}
	err = c.journal.Forward(ctx, op.Op{Kind: opHostReset, Subject: hostSubject, SubjectID: hostID, Steps: steps})
	return res, mvm.Wrap(err, "reset", hostSubject)
}

// hostUndo tells the journal how operations on the host end in the store.
func (c *core) hostUndo(j *op.Journal) {
	j.OnFinish(opHostReset, func(tx *store.Tx, _ string, _ []byte) error {
		return errors.Join(tx.DeleteHostState(tx.Context(), setupKey), tx.DeleteHostState(tx.Context(), forwardingBefore))
	})
}

// planSettingBack says what will become of a setting.
func (c *core) planSettingBack(ch host.Change, res *HostCleanResult) error {
	m := c.machine()
	what, err := m.Outlook(ch)
	if err != nil {
		return hostError(err, "look at", ch.Setting)
	}
	switch what {
	case host.WillRestore:
		back := HostChange{What: ch.Setting.String(), Old: settingText(ch.Setting, ch.New), New: settingText(ch.Setting, ch.Old)}
		if members, err := m.GroupMembers(ch.Name); ch.Kind == host.Group && err == nil && len(members) > 0 {
			back.Old += fmt.Sprintf(", members %v", members)
		}
		res.Changes = append(res.Changes, back)
	case host.IsChanged:
		now, err := m.Observe(ch.Setting)
		if err != nil {
			return hostError(err, "look at", ch.Setting)
		}
		res.Left = append(res.Left, HostProblem{
			What: fmt.Sprintf("the %s is left as it is (%s): it was changed since 'mvm host init'", ch.Setting, orAbsent(settingText(ch.Setting, now))),
			Hint: "before init it was: " + orAbsent(settingText(ch.Setting, ch.Old)),
		})
	}
	return nil
}

func orAbsent(s string) string {
	if s == "" {
		return "not there"
	}
	return s
}

// planClean lists what networking of ours there is, taps first, and the steps that
// remove it.
func (c *core) planClean(ctx context.Context, in HostCleanInput, verb string) (*HostCleanResult, []op.Step, error) {
	res := &HostCleanResult{Changes: []HostChange{}, Left: []HostProblem{}}
	if !c.isRoot() {
		return nil, nil, &mvm.NeedsInteraction{What: "this needs root", Command: []string{"sudo", "mvm", "host", verb}}
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	vms, err := (&VMOperation{c}).ListAll(ctx)
	if err != nil {
		return nil, nil, err
	}
	owned, err := c.owned(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := inTheWay(vms, owned); err != nil && !in.Force {
		return nil, nil, err
	}
	nets, err := st.ListNetworks(ctx)
	if err != nil {
		return nil, nil, err
	}
	var steps []op.Step
	for _, vm := range vms {
		steps = append(steps, &tapStep{c: c, VMID: vm.ID, Name: vm.TapDevice})
		if vm.CloudInitMode == mvm.CloudInitNet {
			steps = append(steps, &nocloudStep{c: c, VMID: vm.ID})
		}
	}
	for _, d := range owned {
		known := func(vm *mvm.VMInstanceItem) bool { return vm.ID == d.ID }
		if !d.Bridge && !slices.ContainsFunc(vms, known) {
			steps = append(steps, &tapStep{c: c, VMID: d.ID, Name: d.Name})
		}
	}
	for _, n := range nets {
		steps = append(steps, &bridgeStep{c: c, Spec: networkSpec(n)})
	}
	others, err := c.othersBridges(ctx, owned, nets)
	if err != nil {
		return nil, nil, err
	}
	steps = append(steps, others...)
	for _, d := range owned {
		what := "tap "
		if d.Bridge {
			what = "bridge "
		}
		res.Changes = append(res.Changes, HostChange{What: what + d.Name + whose(d.ID), Old: "there"})
	}
	return res, steps, nil
}

// whose names the owner of an object where that is not root.
func whose(id string) string {
	if uid, member := network.OwnerOf(id); member {
		return fmt.Sprintf(" of user %d", uid)
	}
	return ""
}

// inTheWay refuses to take the network from under VMs.
func inTheWay(vms []*mvm.VMInstanceItem, owned []network.Owned) error {
	for _, vm := range vms {
		if vm.Status.Active() {
			return mvm.Errorf(mvm.ErrConflict, "VM %s is %s", mvm.Quote(vm.Name), vm.Status).
				WithHint("stop it first with 'mvm vm stop %s', or add --force: it then has no network until it is started again", vm.Name)
		}
	}
	for _, d := range owned {
		known := func(vm *mvm.VMInstanceItem) bool { return vm.ID == d.ID }
		if !d.Bridge && !slices.ContainsFunc(vms, known) {
			return mvm.Errorf(mvm.ErrConflict, "tap %s belongs to a VM%s that this cache does not know", d.Name, whose(d.ID)).
				WithHint("have its owner stop it, or add --force: it then has no network until it is started again")
		}
	}
	return nil
}

// othersBridges are the steps that remove bridges of networks that the store does not
// know. Their rules go by the id; the rest of the spec only has to be possible.
func (c *core) othersBridges(ctx context.Context, owned []network.Owned, nets []*mvm.NetworkItem) ([]op.Step, error) {
	addrs, err := c.net.HostAddresses(ctx)
	if err != nil {
		return nil, err
	}
	var steps []op.Step
	for _, d := range owned {
		known := func(n *mvm.NetworkItem) bool { return n.ID == d.ID && n.Bridge == d.Name }
		if !d.Bridge || slices.ContainsFunc(nets, known) {
			continue
		}
		spec := network.Spec{NetworkID: d.ID, Name: d.Name, Bridge: d.Name, Subnet: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("192.0.2.1")}
		for _, a := range addrs {
			if a.Interface == d.Name {
				spec.Subnet, spec.Gateway = a.Prefix.Masked(), a.Prefix.Addr()
			}
		}
		steps = append(steps, &bridgeStep{c: c, Spec: spec})
	}
	return steps, nil
}

// CheckRequiredBinaries returns the names of programs that mvm runs and that are not
// installed, with their packages.
func (o *HostOperation) CheckRequiredBinaries(context.Context) ([]string, error) {
	return host.MissingBinaries(), nil
}

// GetIPForwardStatus returns the value of net.ipv4.ip_forward: "0" or "1".
func (o *HostOperation) GetIPForwardStatus(context.Context) (string, error) {
	return host.IPForward(), nil
}

// GetRunningVMs returns the VMs that run, or are paused.
func (o *HostOperation) GetRunningVMs(ctx context.Context) ([]*mvm.VMInstanceItem, error) {
	vms, err := (&VMOperation{o.core}).ListAll(ctx)
	return slices.DeleteFunc(vms, func(vm *mvm.VMInstanceItem) bool {
		return vm.Status != mvm.StatusRunning && vm.Status != mvm.StatusPaused
	}), err
}

// HostState is what init has made of this host, by what this cache knows.
type HostState struct {
	InitializedAt string       `json:"initialized_at"`
	Changes       []HostChange `json:"changes"` // with the values that Reset restores
	Group         string       `json:"group"`
	Helper        string       `json:"helper"`
}

// GetState returns what init has made of the host, nil where it never ran.
func (o *HostOperation) GetState(ctx context.Context) (*HostState, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	setup, err := readSetup(ctx, st.Queries)
	if err != nil || setup.At == "" {
		return nil, err
	}
	s := &HostState{InitializedAt: setup.At, Changes: []HostChange{}, Group: helper.Group, Helper: helper.Path}
	for _, ch := range setup.Changes {
		s.Changes = append(s.Changes, changeText(ch))
	}
	return s, nil
}
