package nettest

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// Fake is a network.Kernel in memory that behaves like the real one. Its zero
// value is a host without networks that does not forward. Methods beyond the
// interface stand for what other programs do.
type Fake struct {
	// Fail, if set, is asked before each effect, such as "make bridge mvm-a";
	// its error ends the method there, like a kernel that refuses.
	Fail func(effect string) error

	// Routes and Addresses are the host's own.
	Routes    []network.Route
	Addresses []network.Address

	// Passages are what other programs have in the way of the guests of every network.
	Passages []network.Passage

	// File, if set, holds the host instead of memory: all Fakes with that file,
	// also of other processes, are one host. One that is killed leaves each
	// method's effect whole or not there.
	File string

	mu         sync.Mutex
	links      map[string]*fakeLink
	tables     map[string]*fakeTable
	forwarding bool
}

var _ network.Kernel = (*Fake)(nil)

type fakeLink struct {
	kind     string // "bridge", "tap", "other"
	alias    string
	up       bool
	addr     netip.Prefix
	master   string
	isolated bool
	localnet bool // route_localnet
	limit    network.Limit
}

type fakeTable struct {
	owner   string // the tag; "" for somebody else's
	rules   []mvm.FirewallRule
	backend network.Backend
	open    map[netip.Addr]time.Duration // of egress rules
	denied  network.Denials
}

// has says whether a table holds just these rules, in this backend.
func (t *fakeTable) has(rules []mvm.FirewallRule, b network.Backend) bool {
	return t != nil && t.backend == b.OrDefault() && network.InPlace(rules, t.rules)
}

// begin takes the lock after looking at the context.
func (f *Fake) begin(ctx context.Context) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	end := f.mu.Unlock
	if f.File != "" {
		write, err := f.share(ctx)
		if err != nil {
			f.mu.Unlock()
			return nil, err
		}
		end = func() {
			write()
			f.mu.Unlock()
		}
	}
	if f.links == nil {
		f.links, f.tables = map[string]*fakeLink{"lo": {kind: "other", up: true}}, map[string]*fakeTable{}
	}
	return end, nil
}

func (f *Fake) effect(ctx context.Context, what string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.Fail != nil {
		return f.Fail(what)
	}
	return nil
}

func taken(name string) error {
	return mvm.Errorf(mvm.ErrExists, "interface %s is there already and belongs to something else", mvm.Quote(name)).
		WithHint("use another name, or remove it if nothing needs it")
}

// own says whether link and table of a name may be used for an id.
func (f *Fake) own(kind, name, id string) error {
	if l := f.links[name]; l != nil && (l.kind != kind || l.alias != network.Alias(id)) {
		return taken(name)
	}
	if t := f.tables[name]; t != nil && t.owner != network.Tag(id) {
		return taken(name)
	}
	return nil
}

// EnsureNetwork implements network.Kernel.
func (f *Fake) EnsureNetwork(ctx context.Context, s network.Spec) ([]network.Change, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := f.own("bridge", s.Bridge, s.NetworkID); err != nil {
		return nil, err
	}
	var changes []network.Change
	step := func(needed bool, effect string, c network.Change, do func()) {
		if err == nil && needed {
			if err = f.effect(ctx, effect); err == nil {
				do()
				changes = append(changes, c)
			}
		}
	}
	step(f.links[s.Bridge] == nil, "make bridge "+s.Bridge, network.Change{What: "bridge " + s.Bridge, New: s.Subnet.String()},
		func() { f.links[s.Bridge] = &fakeLink{kind: "bridge", alias: network.Alias(s.NetworkID)} })
	if err != nil {
		return changes, err
	}
	l, want := f.links[s.Bridge], netip.PrefixFrom(s.Gateway, s.Subnet.Bits())
	step(l.addr != want, "address "+s.Bridge, network.Change{What: "address of " + s.Bridge, New: want.String()}, func() { l.addr = want })
	step(!l.up, "up "+s.Bridge, network.Change{What: "state of " + s.Bridge, Old: "down", New: "up"}, func() { l.up = true })
	t := f.tables[s.Bridge]
	step(!t.has(network.Rules(s), s.Backend), "rules "+s.Bridge, network.Change{What: "rules of " + s.Bridge, New: "present"},
		func() {
			f.tables[s.Bridge] = &fakeTable{owner: network.Tag(s.NetworkID), rules: network.Rules(s), backend: s.Backend.OrDefault()}
		})
	step(s.ForwardsNeeded() && !f.forwarding, "forwarding", network.Change{What: network.ForwardingSysctl, Old: "0", New: "1"}, func() { f.forwarding = true })
	step(s.Loopback && !l.localnet, "loopback "+s.Bridge, network.Change{What: "sysctl net.ipv4.conf." + s.Bridge + ".route_localnet", Old: "0", New: "1"},
		func() { l.localnet = true })
	for i := range f.Passages {
		p := &f.Passages[i]
		step(p.Ours && !p.Open, "passage "+p.Place, network.Change{What: "way through the rules of " + p.Program + " by " + p.Place, New: "open"},
			func() { p.Open, p.Added, p.Removed, p.Kept = true, 0, 0, p.Kept+p.Added })
	}
	return changes, err
}

// RemoveNetwork implements network.Kernel.
func (f *Fake) RemoveNetwork(ctx context.Context, s network.Spec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	return f.remove(ctx, "bridge", s.Bridge, s.NetworkID)
}

func (f *Fake) remove(ctx context.Context, kind, name, id string) error {
	end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if l := f.links[name]; l != nil && l.kind == kind && l.alias == network.Alias(id) {
		if err := f.effect(ctx, "remove "+name); err != nil {
			return err
		}
		f.dropLink(name)
	}
	if t := f.tables[name]; t != nil && t.owner == network.Tag(id) {
		if err := f.effect(ctx, "remove rules of "+name); err != nil {
			return err
		}
		delete(f.tables, name)
	}
	return nil
}

func (f *Fake) dropLink(name string) {
	delete(f.links, name)
	for _, l := range f.links {
		if l.master == name {
			l.master, l.isolated = "", false
		}
	}
}

// Observe implements network.Kernel.
func (f *Fake) Observe(ctx context.Context, s network.Spec) (network.Observed, error) {
	var o network.Observed
	if err := s.Validate(); err != nil {
		return o, err
	}
	end, err := f.begin(ctx)
	if err != nil {
		return o, err
	}
	defer end()
	if l := f.links[s.Bridge]; l != nil {
		if l.kind != "bridge" || l.alias != network.Alias(s.NetworkID) {
			return network.Observed{Foreign: true}, nil
		}
		o.Exists, o.Up, o.Gateway = true, l.up, l.addr == netip.PrefixFrom(s.Gateway, s.Subnet.Bits())
	}
	o.Forwarding, o.Passages = f.forwarding, slices.Clone(f.Passages)
	if t := f.tables[s.Bridge]; t != nil && t.owner == network.Tag(s.NetworkID) {
		if t.backend == s.Backend.OrDefault() {
			o.Rules = slices.Clone(t.rules)
		}
		o.Right = o.Active() && t.has(network.Rules(s), s.Backend) && (f.forwarding || !s.ForwardsNeeded()) &&
			(!s.Loopback || f.links[s.Bridge].localnet) && !slices.ContainsFunc(f.Passages, func(p network.Passage) bool { return p.Ours && !p.Open })
	}
	return o, nil
}

// AddTap implements network.Kernel.
func (f *Fake) AddTap(ctx context.Context, t network.TapSpec) error {
	if err := t.Validate(); err != nil {
		return err
	}
	end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	br := f.links[t.Bridge]
	if br == nil {
		return mvm.Errorf(mvm.ErrNotFound, "bridge %s of VM %s is missing", mvm.Quote(t.Bridge), mvm.Quote(t.VMName)).
			WithHint("run 'mvm network sync' to set the networks up again")
	}
	if _, ours := network.AliasID(br.alias); br.kind != "bridge" || !ours {
		return taken(t.Bridge)
	}
	if err := f.own("tap", t.Name, t.VMID); err != nil {
		return err
	}
	if f.links[t.Name] == nil {
		if err := f.effect(ctx, "make tap "+t.Name); err != nil {
			return err
		}
		f.links[t.Name] = &fakeLink{kind: "tap", alias: network.Alias(t.VMID)}
	}
	if err := f.effect(ctx, "guard "+t.Name); err != nil {
		return err
	}
	f.tables[t.Name] = &fakeTable{owner: network.Tag(t.VMID), rules: network.GuestRules(t), backend: t.Backend.OrDefault()}
	f.egress(t)
	ports := 0
	for name, l := range f.links {
		if name != t.Name && l.master == t.Bridge {
			ports++
		}
	}
	if ports >= network.MaxPorts {
		return mvm.Errorf(mvm.ErrUnavailable, "bridge %s of VM %s is full", mvm.Quote(t.Bridge), mvm.Quote(t.VMName)).WithHint("create another network")
	}
	if err := f.effect(ctx, "attach "+t.Name); err != nil {
		return err
	}
	l := f.links[t.Name]
	l.master, l.isolated, l.up, l.limit = t.Bridge, t.Isolated, true, t.Limit
	return nil
}

// egress puts a VM's egress rules in place.
func (f *Fake) egress(t network.TapSpec) {
	name, rules := network.EgressTable(t.Name), network.EgressRules(t)
	switch was := f.tables[name]; {
	case len(rules) == 0:
		delete(f.tables, name)
	case was == nil || !network.InPlace(rules, was.rules):
		f.tables[name] = &fakeTable{owner: network.Tag(t.VMID), rules: rules, open: map[netip.Addr]time.Duration{}}
	}
}

// OpenEgress implements network.Kernel.
func (f *Fake) OpenEgress(ctx context.Context, t network.TapSpec, addrs []network.OpenAddr) error {
	if err := t.ValidateRemoval(); err != nil {
		return err
	}
	end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	table := f.tables[network.EgressTable(t.Name)]
	for _, a := range addrs {
		switch {
		case !a.Addr.Is4() || a.For <= 0:
			return mvm.Errorf(mvm.ErrInvalid, "address %s for %s cannot be opened", a.Addr, a.For).WithHint("give an IPv4 address and a time")
		case table == nil || len(table.rules) == 0:
			return mvm.Errorf(mvm.ErrNotFound, "VM %s has no egress rules with names", mvm.Quote(t.VMID)).WithHint("run 'mvm network sync'")
		}
		table.open[a.Addr] = a.For
	}
	return nil
}

// Denials implements network.Kernel.
func (f *Fake) Denials(ctx context.Context, t network.TapSpec) (network.Denials, error) {
	none := network.Denials{To: []network.Denial{}}
	if err := t.ValidateRemoval(); err != nil {
		return none, err
	}
	end, err := f.begin(ctx)
	if err != nil {
		return none, err
	}
	defer end()
	if table := f.tables[network.EgressTable(t.Name)]; table != nil && table.denied.Packets > 0 {
		return table.denied, nil
	}
	return none, nil
}

// Deny has a packet of a VM be one that was dropped.
func (f *Fake) Deny(vmID string, to network.Denial) {
	end, _ := f.begin(context.Background())
	defer end()
	d := &f.tables[network.EgressTable(network.TapName(vmID))].denied
	d.Packets, d.Bytes, d.To = d.Packets+to.Packets, d.Bytes+to.Bytes, append(d.To, to)
}

// LimitOf returns the limits of a VM's tap.
func (f *Fake) LimitOf(vmID string) network.Limit {
	end, _ := f.begin(context.Background())
	defer end()
	if l := f.links[network.TapName(vmID)]; l != nil {
		return l.limit
	}
	return network.Limit{}
}

// RemoveTap implements network.Kernel.
func (f *Fake) RemoveTap(ctx context.Context, t network.TapSpec) error {
	if err := t.ValidateRemoval(); err != nil {
		return err
	}
	if err := f.remove(ctx, "", network.EgressTable(t.Name), t.VMID); err != nil {
		return err
	}
	return f.remove(ctx, "tap", t.Name, t.VMID)
}

// AllowNoCloud implements network.Kernel.
func (f *Fake) AllowNoCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.Validate(); err != nil {
		return err
	}
	end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if t := f.tables[n.Table()]; t != nil && t.owner != network.Tag(n.VMID) {
		return taken(n.Table())
	}
	if err := f.effect(ctx, "rules "+n.Table()); err != nil {
		return err
	}
	f.tables[n.Table()] = &fakeTable{owner: network.Tag(n.VMID), rules: network.NoCloudRules(n), backend: n.Backend.OrDefault()}
	return nil
}

// RemoveNoCloud implements network.Kernel.
func (f *Fake) RemoveNoCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.ValidateRemoval(); err != nil {
		return err
	}
	return f.remove(ctx, "", n.Table(), n.VMID)
}

// ObserveTap implements network.Kernel.
func (f *Fake) ObserveTap(ctx context.Context, t network.TapSpec) (network.ObservedTap, error) {
	if err := t.Validate(); err != nil {
		return network.ObservedTap{}, err
	}
	end, err := f.begin(ctx)
	if err != nil {
		return network.ObservedTap{}, err
	}
	defer end()
	if err := f.own("tap", t.Name, t.VMID); err != nil {
		return network.ObservedTap{}, err
	}
	table := f.tables[t.Name]
	if table == nil {
		return network.ObservedTap{}, nil
	}
	rules, want := slices.Clone(table.rules), slices.Concat(network.EgressRules(t), network.GuestRules(t))
	if egress := f.tables[network.EgressTable(t.Name)]; egress != nil {
		rules = slices.Concat(egress.rules, table.rules)
	}
	link := f.links[t.Name]
	return network.ObservedTap{Rules: rules, Right: table.backend == t.Backend.OrDefault() && network.InPlace(want, rules) && (link == nil || link.limit == t.Limit)}, nil
}

// Taps implements network.Kernel.
func (f *Fake) Taps(ctx context.Context) ([]network.Tap, error) {
	end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var taps []network.Tap
	for name, l := range f.links {
		if id, ours := network.AliasID(l.alias); ours && l.kind == "tap" {
			taps = append(taps, network.Tap{Name: name, VMID: id, Bridge: l.master, Up: l.up, Isolated: l.isolated, Guarded: f.tables[name] != nil})
		}
	}
	slices.SortFunc(taps, func(a, b network.Tap) int { return strings.Compare(a.Name, b.Name) })
	return taps, nil
}

// HostRoutes implements network.Kernel.
func (f *Fake) HostRoutes(ctx context.Context) ([]network.Route, error) {
	end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	routes := slices.Clone(f.Routes)
	for name, l := range f.links {
		if l.addr.IsValid() && l.up {
			routes = append(routes, network.Route{Dst: l.addr.Masked(), Interface: name})
		}
	}
	return routes, nil
}

// HostAddresses implements network.Kernel.
func (f *Fake) HostAddresses(ctx context.Context) ([]network.Address, error) {
	end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	addrs := append([]network.Address{{Prefix: netip.MustParsePrefix("127.0.0.1/8"), Interface: "lo"}}, f.Addresses...)
	for name, l := range f.links {
		if l.addr.IsValid() {
			addrs = append(addrs, network.Address{Prefix: l.addr, Interface: name})
		}
	}
	return addrs, nil
}

// Interfaces implements network.Kernel.
func (f *Fake) Interfaces(ctx context.Context) ([]string, error) {
	end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return slices.Sorted(maps.Keys(f.links)), nil
}
