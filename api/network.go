package api

import (
	"context"
	"net/netip"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/helper"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/store"
)

// ListAll returns all networks, with their leases and whether they are up.
func (o *NetworkOperation) ListAll(ctx context.Context) ([]*mvm.NetworkItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	nets, err := st.ListNetworks(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range nets {
		if _, err := o.core.observeNetwork(ctx, st, n); err != nil {
			return nil, err
		}
	}
	return nets, nil
}

// Get returns one network by name or id prefix.
func (o *NetworkOperation) Get(ctx context.Context, in NetworkInput) (*mvm.NetworkItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.core.findNetwork(ctx, st, in)
}

// Inspect returns a network with its leases, its VMs, and the rules that stand
// in the kernel.
func (o *NetworkOperation) Inspect(ctx context.Context, in NetworkInput) (*NetworkInspect, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	n, seen, err := o.core.lookUpNetwork(helper.WithRules(ctx), st, in)
	if err != nil {
		return nil, err
	}
	if err := rowsOfRules(ctx, st, n); err != nil {
		return nil, err
	}
	out := &NetworkInspect{Network: n, Leases: n.Leases, Rules: n.IPTablesRules, VMs: []string{}, Passages: passagesOf(seen)}
	vms, err := (&VMOperation{o.core}).ListAll(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range vms {
		if v.NetworkID != n.ID {
			continue
		}
		out.VMs, n.VMs = append(out.VMs, v.Name), append(n.VMs, v)
		rules, err := o.core.rulesOfVM(ctx, v, n)
		if err != nil {
			return nil, err
		}
		out.Rules = append(out.Rules, rules...)
	}
	return out, nil
}

// rulesOfVM returns the rules of a VM that stand in the kernel.
func (c *core) rulesOfVM(ctx context.Context, vm *mvm.VMInstanceItem, n *mvm.NetworkItem) ([]*mvm.FirewallRule, error) {
	if !vm.Status.Active() {
		return nil, nil
	}
	spec, err := tapSpec(vm, n)
	if err != nil {
		return nil, err
	}
	seen, err := c.net.ObserveTap(ctx, spec)
	if err != nil {
		return nil, mvm.Wrap(err, "look at the rules of VM", vm.Name)
	}
	rules := make([]*mvm.FirewallRule, 0, len(seen.Rules))
	for i := range seen.Rules {
		rules = append(rules, &seen.Rules[i])
	}
	return rules, nil
}

// rowsOfRules adds to rules that were seen in the kernel what is stored of them.
func rowsOfRules(ctx context.Context, st *store.Store, n *mvm.NetworkItem) error {
	rows, err := st.ListFirewallRules(ctx, n.ID)
	if err != nil {
		return err
	}
	for _, r := range n.IPTablesRules {
		for _, row := range rows {
			if network.Same(*row, *r) {
				r.ID, r.CreatedAt, r.LastVerifiedAt = row.ID, row.CreatedAt, row.LastVerifiedAt
			}
		}
	}
	return nil
}

// CreateDefaultNetwork makes the default network if there is none and brings
// it up if this process may. Doing it twice does nothing.
func (o *NetworkOperation) CreateDefaultNetwork(ctx context.Context) (*mvm.NetworkItem, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	n, _, err := o.core.defaultNetwork(ctx, st)
	return n, err
}

// defaultNetwork returns the default network, and whether it was made just now. It
// is brought up with its first VM, or by init.
func (c *core) defaultNetwork(ctx context.Context, st *store.Store) (*mvm.NetworkItem, bool, error) {
	set, err := loadSettings(ctx, st)
	if err != nil {
		return nil, false, err
	}
	name := set.str("defaults.network", "name")
	if err := mvm.ValidateName("network", name); err != nil {
		return nil, false, err
	}
	if n, err := findDefaultNetwork(ctx, st.Queries, name); err != nil || n != nil {
		return n, false, err
	}
	plan := &networkPlan{c: c, set: set, item: &mvm.NetworkItem{
		ID: newID(), Name: name, Bridge: c.bridgeName(name), NATEnabled: set.flag("defaults.network", "nat_enabled"), DNSEnabled: c.dnsByDefault(set),
		IsDefault: true, IsPresent: true, CreatedAt: now(), UpdatedAt: now(),
	}}
	if plan.routes, plan.addrs, err = c.hostNetworks(ctx); err != nil {
		return nil, false, err
	}
	var there *mvm.NetworkItem
	err = st.Tx(ctx, func(tx *store.Tx) error { // another command may have been quicker
		if there, err = findDefaultNetwork(ctx, tx.Queries, name); err != nil || there != nil {
			return err
		}
		return plan.reserve(ctx, tx)
	})
	if err != nil {
		return nil, false, mvm.Wrap(err, "create network", name)
	}
	if there != nil {
		return there, false, nil
	}
	c.tellOfNoDNS(plan.item, set)
	return plan.item, true, nil
}

// findDefaultNetwork returns the default network, or where none is, the one that
// has the default's name, or nil.
func findDefaultNetwork(ctx context.Context, q store.Queries, name string) (*mvm.NetworkItem, error) {
	nets, err := q.ListNetworks(ctx)
	if err != nil {
		return nil, err
	}
	var named *mvm.NetworkItem
	for _, n := range nets {
		if n.IsDefault {
			return n, nil
		}
		if n.Name == name {
			named = n
		}
	}
	return named, nil
}

func passagesOf(seen network.Observed) []NetworkPassage {
	all := []NetworkPassage{}
	for _, p := range seen.Passages {
		all = append(all, NetworkPassage{Program: p.Program, Place: p.Place, Open: p.Open})
	}
	return all
}

// warnOfPassages says what keeps a network's guests in, and what can be done.
func (c *core) warnOfPassages(n *mvm.NetworkItem, seen network.Observed) {
	for _, p := range seen.Passages {
		switch {
		case p.Open:
		case p.Ours:
			c.notice("guests of network " + n.Name + " do not get through the rules of " + p.Program + " yet; run 'mvm network sync " + n.Name + "'")
		default:
			c.notice("guests of network " + n.Name + " do not get out: " + p.Place + ", and is not ours to change; have it accept what comes from interface " + n.Bridge + " and what goes to it")
		}
	}
}

func (c *core) findNetwork(ctx context.Context, st *store.Store, in NetworkInput) (*mvm.NetworkItem, error) {
	n, _, err := c.lookUpNetwork(ctx, st, in)
	return n, err
}

func (c *core) lookUpNetwork(ctx context.Context, st *store.Store, in NetworkInput) (*mvm.NetworkItem, network.Observed, error) {
	var seen network.Observed
	sel, err := one("network", in.Identifiers)
	if err != nil {
		return nil, seen, err
	}
	nets, err := st.ListNetworks(ctx)
	if err != nil {
		return nil, seen, err
	}
	n, err := pick("network", sel, "see 'mvm network ls'", networkCandidates(nets))
	if err != nil {
		return nil, seen, err
	}
	seen, err = c.observeNetwork(ctx, st, n)
	return n, seen, err
}

// observeNetwork fills in what the kernel and the leases say of a network.
func (c *core) observeNetwork(ctx context.Context, st *store.Store, n *mvm.NetworkItem) (network.Observed, error) {
	leases, err := st.ListLeases(ctx, n.ID)
	if err != nil {
		return network.Observed{}, err
	}
	n.Leases = leases
	if n.Leases == nil {
		n.Leases = []*mvm.NetworkLeaseItem{}
	}
	seen, err := c.net.Observe(ctx, networkSpec(n))
	if err != nil {
		return seen, mvm.Wrap(err, "look at network", n.Name)
	}
	n.BridgeActive = seen.Active()
	n.IPTablesRules = []*mvm.FirewallRule{}
	for i := range seen.Rules {
		n.IPTablesRules = append(n.IPTablesRules, &seen.Rules[i])
	}
	return seen, nil
}

// ensureNetwork brings a network up, or mends it, and notes its rules and what it
// changed of the host for good.
func (c *core) ensureNetwork(ctx context.Context, spec network.Spec) ([]network.Change, error) {
	changes, err := c.net.EnsureNetwork(ctx, spec)
	if err != nil {
		return changes, mvm.Wrap(err, "bring up network", spec.Name)
	}
	for _, ch := range changes {
		if ch.What == network.ForwardingSysctl { // the only change that outlives the network: keep what was before
			var before string
			if known, err := c.st.GetHostState(ctx, "before."+ch.What, &before); err == nil && !known {
				if err := c.st.SetHostState(ctx, "before."+ch.What, ch.Old); err != nil {
					return changes, err
				}
			}
		}
	}
	return changes, nil
}

// ensureAndRecord is ensureNetwork for a network that is in the store.
func (c *core) ensureAndRecord(ctx context.Context, spec network.Spec) ([]network.Change, error) {
	changes, err := c.ensureNetwork(ctx, spec)
	if err != nil {
		return changes, err
	}
	return changes, c.st.Tx(ctx, func(tx *store.Tx) error { return recordRules(ctx, tx, spec) })
}

// networkSpec is a stored network as the kernel is to have it. A stored value
// that cannot be parsed leaves its field invalid, which Validate names.
func networkSpec(n *mvm.NetworkItem) network.Spec {
	s := network.Spec{NetworkID: n.ID, Name: n.Name, Bridge: n.Bridge, NAT: n.NATEnabled, DNS: n.DNSEnabled}
	s.Subnet, _ = netip.ParsePrefix(n.Subnet)
	s.Gateway, _ = netip.ParseAddr(n.IPv4Gateway)
	if n.NATGateways != nil && *n.NATGateways != "" {
		s.NATGateways = strings.Split(*n.NATGateways, ",")
	}
	return s
}

// one returns the only selector of an input.
func one(what string, selectors []string) (string, error) {
	if len(selectors) != 1 || selectors[0] == "" {
		return "", mvm.Errorf(mvm.ErrInvalid, "%d selectors given; exactly one %s is wanted", len(selectors), what).WithHint("name one %s", what)
	}
	return selectors[0], nil
}
