package api

import (
	"context"
	"errors"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/helper"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/store"
)

// NetworkSynced is how the rules of a network and its VMs in the kernel differed from
// those wanted, at the places of other programs too, and what was done about it.
type NetworkSynced struct {
	Added   int          `json:"added"`   // rules that were missing
	Removed int          `json:"removed"` // rules among ours that are not ours to have
	Kept    int          `json:"kept"`
	Changes []HostChange `json:"changes"` // of the host, rules included
}

// HostChange is something of the host that was changed.
type HostChange struct {
	What string `json:"what"`
	Old  string `json:"old"` // "" when it was not there
	New  string `json:"new"`
}

// Sync compares networks with the kernel and mends what differs: bridges,
// addresses, rules, and the devices of VMs that run. Without identifiers it does
// so for all networks. What other programs have made is neither looked at nor
// touched. One that cannot be mended is told in the error, beside the rest.
func (o *NetworkOperation) Sync(ctx context.Context, in NetworkInput) (map[string]*NetworkSynced, error) {
	c := o.core
	if err := c.requireRoot("mending networks"); err != nil {
		return nil, err
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	nets, err := c.selectNetworks(ctx, st, in)
	if err != nil {
		return nil, err
	}
	vms, err := (&VMOperation{c}).ListAll(ctx)
	if err != nil {
		return nil, err
	}
	return c.syncNetworks(ctx, st, nets, vms)
}

// syncNetworks mends networks. It opens nothing, so that recovery can use it.
func (c *core) syncNetworks(ctx context.Context, st *store.Store, nets []*mvm.NetworkItem, vms []*mvm.VMInstanceItem) (map[string]*NetworkSynced, error) {
	taps, err := c.net.Taps(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]*NetworkSynced{}
	var errs []error
	var right []network.Spec
	for _, n := range nets {
		if !n.IsPresent { // being made or removed
			continue
		}
		s := &syncing{c: c, n: n, spec: networkSpecFor(n, vms...), done: &NetworkSynced{Changes: []HostChange{}}}
		err := s.network(ctx)
		if err == nil {
			right = append(right, s.spec)
			err = s.taps(ctx, vms, taps)
		}
		out[n.Name] = s.done
		errs = append(errs, mvm.Wrap(err, "sync network", n.Name))
	}
	errs = append(errs, st.Tx(ctx, func(tx *store.Tx) error {
		for _, spec := range right {
			if err := recordRules(ctx, tx, spec); err != nil {
				return err
			}
		}
		return nil
	}))
	return out, errors.Join(errs...)
}

// syncing is one network that is compared and mended.
type syncing struct {
	c    *core
	n    *mvm.NetworkItem
	spec network.Spec
	done *NetworkSynced
}

func (c *core) selectNetworks(ctx context.Context, st *store.Store, in NetworkInput) ([]*mvm.NetworkItem, error) {
	all, err := st.ListNetworks(ctx)
	if err != nil || len(in.Identifiers) == 0 {
		return all, err
	}
	var nets []*mvm.NetworkItem
	for _, sel := range in.Identifiers {
		n, err := pick("network", sel, "see 'mvm network ls'", networkCandidates(all))
		if err != nil {
			return nil, err
		}
		nets = append(nets, n)
	}
	return nets, nil
}

// network mends bridge, address and rules.
func (s *syncing) network(ctx context.Context) error {
	seen, err := s.c.net.Observe(helper.WithRules(ctx), s.spec)
	if err != nil {
		return err
	}
	s.count(network.Diff(network.Rules(s.spec), seen.Rules))
	for _, p := range seen.Passages {
		s.done.Added, s.done.Removed, s.done.Kept = s.done.Added+p.Added, s.done.Removed+p.Removed, s.done.Kept+p.Kept
	}
	if seen.Right {
		return nil
	}
	changes, err := s.c.ensureNetwork(ctx, s.spec)
	for _, ch := range changes {
		s.done.Changes = append(s.done.Changes, HostChange(ch))
	}
	return err
}

func (s *syncing) count(d network.RuleDiff) {
	s.done.Added += len(d.Added)
	s.done.Removed += len(d.Removed)
	s.done.Kept += len(d.Kept)
}

// taps puts the devices of VMs that run back on a bridge that was made anew, with
// their guards. there are the taps as they were before.
func (s *syncing) taps(ctx context.Context, vms []*mvm.VMInstanceItem, taps []network.Tap) error {
	there := map[string]network.Tap{}
	for _, t := range taps {
		there[t.Name] = t
	}
	for _, vm := range vms {
		if vm.NetworkID != s.n.ID || vm.Status != mvm.StatusRunning && vm.Status != mvm.StatusPaused {
			continue
		}
		if err := s.noCloud(ctx, vm); err != nil {
			return err
		}
		spec, err := tapSpec(vm, s.n)
		if err != nil {
			return err
		}
		was, ok := there[spec.Name]
		rebuilt := slices.ContainsFunc(s.done.Changes, func(ch HostChange) bool { return ch.What == "bridge "+spec.Bridge })
		rules, err := s.c.net.ObserveTap(ctx, spec)
		if err != nil {
			return err
		}
		s.count(network.Diff(slices.Concat(network.EgressRules(spec), network.GuestRules(spec)), rules.Rules))
		if ok && rules.Right && was.Up && was.Guarded && was.Bridge == spec.Bridge && was.Isolated == spec.Isolated && !rebuilt {
			continue
		}
		if err := s.c.net.AddTap(ctx, spec); err != nil {
			return err
		}
		s.done.Changes = append(s.done.Changes, HostChange{What: "tap " + spec.Name + " of VM " + vm.Name, Old: tapWas(was, ok), New: "up on " + spec.Bridge})
	}
	// It opens again what was closed by that, and listens on a bridge that is new.
	started, err := s.c.refreshDNS(ctx, s.n.ID, "")
	if started {
		s.done.Changes = append(s.done.Changes, HostChange{What: "DNS server of " + s.n.Name, New: "started"})
	}
	return err
}

// noCloud mends the rules of the server that a VM's cloud-init reads from, where it
// runs.
func (s *syncing) noCloud(ctx context.Context, vm *mvm.VMInstanceItem) error {
	if vm.NocloudNetPID == nil {
		return nil
	}
	spec, err := noCloudSpec(vm, s.n)
	if err != nil {
		return err
	}
	return s.c.net.AllowNoCloud(ctx, spec)
}

func tapWas(t network.Tap, there bool) string {
	switch {
	case !there:
		return ""
	case t.Bridge == "":
		return "without a bridge"
	case !t.Up:
		return "down"
	case !t.Guarded:
		return "unguarded"
	}
	return "on " + t.Bridge + ", with other rules"
}

// recordRules brings the stored rules of a network in line with its spec, after
// they were seen or put in the kernel.
func recordRules(ctx context.Context, tx *store.Tx, spec network.Spec) error {
	rows, err := tx.ListFirewallRules(ctx, spec.NetworkID)
	if err != nil {
		return err
	}
	stored := make([]mvm.FirewallRule, 0, len(rows))
	for _, r := range rows {
		stored = append(stored, *r)
	}
	if spec.Backend, err = firewallBackend(ctx, tx.Queries); err != nil {
		return err
	}
	desired := network.Rules(spec)
	sameText := func(a, b mvm.FirewallRule) bool { return deref(a.CommandString) == deref(b.CommandString) }
	if network.InPlace(desired, stored) && slices.EqualFunc(desired, stored, sameText) {
		return tx.VerifyFirewallRules(ctx, spec.NetworkID, now())
	}
	// All anew, for their order counts; what stays keeps its birthday.
	kept := network.Diff(desired, stored).Kept
	if err := tx.DeleteFirewallRules(ctx, spec.NetworkID); err != nil {
		return err
	}
	at := now()
	for _, r := range desired {
		if i := slices.IndexFunc(kept, func(k mvm.FirewallRule) bool { return network.Same(k, r) }); i >= 0 {
			r.CreatedAt = kept[i].CreatedAt
		}
		r.LastVerifiedAt = &at
		if err := tx.InsertFirewallRule(ctx, &r); err != nil {
			return err
		}
	}
	return nil
}
