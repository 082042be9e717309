package api

import (
	"errors"
	"slices"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// Clean removes all that is ours, also what this cache does not know, and refuses
// to take the network from under VMs.
func TestHostClean(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	other := nettest.SpecOf("other", "10.9.0.0/24")
	other.NetworkID = network.NewID(1000, 5<<32)
	if _, err := w.net.EnsureNetwork(ctx, other); err != nil {
		t.Fatal(err)
	}
	w.net.AddLink("docker0")
	if _, err := m.Host.Clean(ctx, HostCleanInput{}); !errors.Is(err, mvm.ErrConflict) || mvm.HintOf(err) == "" {
		t.Errorf("with a VM that runs: %v", err)
	}
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	res, err := m.Host.Clean(ctx, HostCleanInput{})
	if err != nil || len(res.Changes) != 2 {
		t.Errorf("cleaned is %+v, %v", res, err)
	}
	if links, err := w.net.Interfaces(ctx); err != nil || !slices.Equal(links, []string{"docker0", "lo"}) {
		t.Errorf("left are %v, %v", links, err)
	}
	if tables := w.net.Tables(); len(tables) != 0 {
		t.Errorf("left are the rules %v", tables)
	}
	if _, err := m.VM.Start(ctx, VMInput{Identifiers: []string{"web"}}); err != nil {
		t.Errorf("a VM cannot be started again: %v", err)
	}
}

func TestHostNeedsRoot(t *testing.T) {
	w := newWorld(t)
	w.root = false
	m := w.open()
	var ask *mvm.NeedsInteraction
	if _, err := m.Host.Init(t.Context()); !errors.As(err, &ask) || !slices.Equal(ask.Command, []string{"sudo", "mvm", "host", "init"}) {
		t.Errorf("init: %v", err)
	}
	for _, do := range []func() error{
		func() error { _, err := m.Host.Clean(t.Context(), HostCleanInput{}); return err },
		func() error { _, err := m.Host.Reset(t.Context(), HostCleanInput{}); return err },
	} {
		if err := do(); !errors.Is(err, mvm.ErrPrivilege) {
			t.Errorf("error is %v", err)
		}
	}
}

// What was before the first init stays known when init runs again, unless somebody
// has changed it in between.
func TestSetupRemembers(t *testing.T) {
	s := host.Setting{Kind: host.Sysctl, Name: sysctlForward}
	state := func(v string) host.State { return host.State{Exists: true, Data: v} }
	change := func(old, new string) *hostPlan {
		return &hostPlan{changes: []host.Change{{Setting: s, Old: state(old), New: state(new), From: "somewhere"}}}
	}
	for name, tc := range map[string]struct {
		inits []*hostPlan
		old   string
	}{
		"once":                    {[]*hostPlan{change("first", "a")}, "first"},
		"twice, nothing to do":    {[]*hostPlan{change("first", "a"), {}}, "first"},
		"of a later version":      {[]*hostPlan{change("first", "a"), change("a", "b")}, "first"},
		"changed in between":      {[]*hostPlan{change("first", "a"), change("mine", "a")}, "mine"},
		"changed, then upgraded":  {[]*hostPlan{change("first", "a"), change("mine", "a"), change("a", "b")}, "mine"},
		"upgraded, then changed ": {[]*hostPlan{change("first", "a"), change("a", "b"), change("mine", "b")}, "mine"},
	} {
		setup := &hostSetup{}
		for _, p := range tc.inits {
			setup.merge(p)
		}
		if len(setup.Changes) != 1 || setup.Changes[0].Old != state(tc.old) || setup.Changes[0].From != "" {
			t.Errorf("%s: %+v", name, setup.Changes)
		}
	}
}

func TestCapacity(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	info, err := m.Host.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := info.Capacity
	var names []string
	for i, b := range c.Bounds {
		names = append(names, b.What)
		if i > 0 && b.MaxVMs < c.Bounds[i-1].MaxVMs || b.Detail == "" {
			t.Errorf("bounds are %+v", c.Bounds)
		}
	}
	slices.Sort(names)
	if want := []string{"addresses", "bridge ports", "cpu", "disk", "fds", "max_vms", "memory", "pids"}; !slices.Equal(names, want) {
		t.Errorf("bounds are %v, want %v", names, want)
	}
	if c.RecommendedMaxVMs != c.Bounds[0].MaxVMs || c.BoundedBy != c.Bounds[0].What || info.CPU.Cores < 1 {
		t.Errorf("capacity is %+v", info)
	}
	find := func(what string) int {
		i := slices.IndexFunc(c.Bounds, func(b HostCapBound) bool { return b.What == what })
		return c.Bounds[i].MaxVMs
	}
	if n := find("addresses"); n != 253 {
		t.Errorf("a /24 has room for %d guests", n)
	}
	if n := find("bridge ports"); n != bridgePorts {
		t.Errorf("a bridge has %d ports", n)
	}
	// Of what is known nothing is looked at again until it is asked for.
	if err := m.core.st.SetSetting(t.Context(), "defaults.vm", "mem_size_mib", "1048576"); err != nil {
		t.Fatal(err)
	}
	if again, err := m.Host.Info(t.Context()); err != nil || again.Capacity.MemMiB != c.MemMiB {
		t.Errorf("again it is %+v, %v", again, err)
	}
	if fresh, err := m.Host.RefreshCapacity(t.Context()); err != nil || fresh.Capacity.BoundedBy != "memory" || fresh.Capacity.RecommendedMaxVMs != 0 {
		t.Errorf("for VMs of a TiB it is %+v, %v", fresh, err)
	}
}
