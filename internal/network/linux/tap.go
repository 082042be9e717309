package linux

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// AddTap implements network.Kernel. The guard stands before the tap joins the
// bridge, and the tap goes up last.
func (k *Kernel) AddTap(ctx context.Context, t network.TapSpec) error {
	if err := t.Validate(); err != nil {
		return err
	}
	s, err := open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	br, err := s.bridgeFor(t)
	if err != nil {
		return err
	}
	tap, err := s.tap(t)
	if err != nil {
		return err
	}
	fw, err := k.openFilters()
	if err != nil {
		return err
	}
	defer fw.close()
	was, err := fw.readTap(ctx, t)
	if err != nil {
		return err
	}
	there := tap != nil
	if tap, err = s.ensureTap(tap, t); err != nil {
		return err
	}
	for _, link := range was.links {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fw.ensure(link); err != nil {
			return err
		}
	}
	if err := s.ensureEgress(fw, t, was.egress); err != nil {
		return err
	}
	if !was.rules.right {
		if err := fw.put(ctx, t.Backend, guestGroup(t), was.rules); err != nil {
			return err
		}
	}
	if there || t.Limit.BytesPerSec > 0 {
		if err := s.ensureShaper(tap, t.Limit); err != nil {
			return err
		}
	}
	return s.attach(tap, br, t)
}

// linkTables are the tables that look at a tap's frames, with any backend: the
// guard, and what keeps it apart.
func linkTables(t network.TapSpec) []table { return []table{guardTable(t), apartTable(t)} }

// tapState is what the kernel has of a tap's rules.
type tapState struct {
	links         []tableState
	rules, egress groupState
}

// right says whether all of them are as they are meant to be.
func (s tapState) right() bool {
	for _, l := range s.links {
		if l.exists != (len(l.want.chains) > 0) || l.chains != len(l.want.chains) || l.extra != 0 || !slices.Equal(l.comments(), l.want.comments()) {
			return false
		}
	}
	return s.rules.right && s.egress.right
}

// readTap reads the tables and the rules of a tap, and refuses those of somebody
// else.
func (f *filters) readTap(ctx context.Context, t network.TapSpec) (tapState, error) {
	var was tapState
	for _, want := range linkTables(t) {
		s, err := f.firewall.read(want)
		if err != nil {
			return was, err
		}
		if s.foreign {
			return was, foreign("nftables table " + familyName(want.family) + " " + t.Name)
		}
		was.links = append(was.links, s)
	}
	egress := egressGroup(t)
	var err error
	if was.egress, err = (nft{f.firewall}).read(ctx, egress); err != nil {
		return was, err
	}
	if was.egress.foreign {
		return was, foreign(nft{}.title(egress))
	}
	was.rules, err = f.readOurs(ctx, t.Backend, guestGroup(t))
	return was, err
}

func familyName(f nftables.TableFamily) string {
	return map[nftables.TableFamily]string{nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge", nftables.TableFamilyIPv4: "ip"}[f]
}

// ensure puts a tap's table in place, or removes one that is not wanted any more.
func (f *firewall) ensure(was tableState) error {
	switch {
	case len(was.want.chains) > 0:
		return f.put(was.want, was)
	case was.exists:
		return f.remove(was.want)
	}
	return nil
}

// bridgeFor returns the bridge that the tap belongs on.
func (s *session) bridgeFor(t network.TapSpec) (netlink.Link, error) {
	br, err := s.link(t.Bridge)
	switch {
	case err != nil:
		return nil, err
	case br == nil:
		return nil, mvm.Errorf(mvm.ErrNotFound, "bridge %s of VM %s is missing", mvm.Quote(t.Bridge), mvm.Quote(t.VMName)).
			WithHint("run 'mvm network sync' to set the networks up again")
	}
	if _, ours := network.AliasID(br.Attrs().Alias); br.Type() != "bridge" || !ours {
		return nil, foreign("interface " + mvm.Quote(t.Bridge))
	}
	return br, nil
}

// tap returns the VM's tap, nil if there is none, and an error if the name is
// somebody else's. A tap that is neither persistent nor marked may be one that
// another process of ours is just making, so it gets a moment to become ours or
// vanish.
func (s *session) tap(t network.TapSpec) (*netlink.Tuntap, error) {
	for end := time.Now().Add(time.Second); ; {
		l, err := s.link(t.Name)
		if err != nil || l == nil {
			return nil, err
		}
		tap, ok := l.(*netlink.Tuntap)
		switch {
		case ok && ownsTap(tap, t.VMID):
			return tap, nil
		case !ok || !tap.NonPersist || tap.Attrs().Alias != "" || time.Now().After(end):
			return nil, foreign("interface " + mvm.Quote(t.Name))
		}
		select {
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func ownsTap(tap *netlink.Tuntap, vmID string) bool {
	return tap.Mode == netlink.TUNTAP_MODE_TAP && tap.Attrs().Alias == network.Alias(vmID)
}

// ensureTap makes the tap where it is missing and gives it its owner.
func (s *session) ensureTap(tap *netlink.Tuntap, t network.TapSpec) (*netlink.Tuntap, error) {
	if tap == nil {
		err := makeTap(t, func() error {
			l, err := s.link(t.Name)
			if err != nil {
				return err
			}
			if l == nil {
				return unix.ENODEV
			}
			return s.LinkSetAlias(l, network.Alias(t.VMID))
		})
		if err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: another process was quicker
			return nil, explain(err, "make tap %s", t.Name)
		}
		if tap, err = s.tap(t); err != nil {
			return nil, err
		}
		if tap == nil {
			return nil, explain(unix.ENODEV, "find tap %s again", t.Name)
		}
	}
	if tap.Owner != uint32(t.OwnerUID) {
		if err := chownTap(t); err != nil && !errors.Is(err, unix.EBUSY) { // in use: its owner has it open
			return nil, explain(err, "give tap %s to user %d", t.Name, t.OwnerUID)
		}
	}
	return tap, nil
}

// attach puts the tap on its bridge and sets it up.
func (s *session) attach(tap *netlink.Tuntap, br netlink.Link, t network.TapSpec) error {
	if tap.Attrs().MasterIndex != br.Attrs().Index {
		disableIPv6(t.Name)
		err := s.LinkSetMaster(tap, br)
		if errors.Is(err, unix.EXFULL) {
			return mvm.Errorf(mvm.ErrUnavailable, "bridge %s of VM %s is full: %d VMs run on it, and no bridge of Linux has room for more", mvm.Quote(t.Bridge), mvm.Quote(t.VMName), network.MaxPorts).
				WithHint("create a network for more VMs with 'mvm network create', or stop VMs of this one")
		}
		if err != nil {
			return explain(err, "attach tap %s to bridge %s", t.Name, t.Bridge)
		}
	}
	port, err := s.LinkGetProtinfo(tap)
	if err != nil {
		return explain(err, "read the bridge port of tap %s", t.Name)
	}
	if port.Isolated != t.Isolated {
		if err := s.LinkSetIsolated(tap, t.Isolated); err != nil {
			return explain(err, "isolate tap %s", t.Name)
		}
	}
	// Where br_netfilter is on, a guest's packet to a port that leads back to itself
	// never leaves the bridge, and has to go out by the port that it came in by.
	if hairpin := len(t.Publish) > 0; port.Hairpin != hairpin {
		if err := s.LinkSetHairpin(tap, hairpin); err != nil {
			return explain(err, "let tap %s reach itself", t.Name)
		}
	}
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if tap.Attrs().Flags&net.FlagUp == 0 {
		if err := s.LinkSetUp(tap); err != nil {
			return explain(err, "set tap %s up", t.Name)
		}
	}
	return nil
}

// RemoveTap implements network.Kernel. The rules go last: the tap is never without
// a guard.
func (k *Kernel) RemoveTap(ctx context.Context, t network.TapSpec) error {
	if err := t.ValidateRemoval(); err != nil {
		return err
	}
	s, err := open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := s.LinkByName(t.Name)
	var none netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &none) {
		return explain(err, "look up tap %s", t.Name)
	}
	if tap, ok := l.(*netlink.Tuntap); err == nil && ok && tap.Attrs().Name == t.Name && ownsTap(tap, t.VMID) {
		if err := s.LinkDel(tap); err != nil && !errors.Is(err, unix.ENODEV) {
			return explain(err, "remove tap %s", t.Name)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	fw, err := k.openFilters()
	if err != nil {
		return err
	}
	defer fw.close()
	for _, gone := range linkTables(network.TapSpec{Name: t.Name, VMID: t.VMID}) {
		if err := fw.firewall.remove(gone); err != nil {
			return err
		}
	}
	if err := (nft{fw.firewall}).remove(ctx, egressGroup(network.TapSpec{Name: t.Name, VMID: t.VMID})); err != nil {
		return err
	}
	return fw.remove(ctx, group{name: t.Name, owner: owner{id: t.VMID}})
}

// ObserveTap implements network.Kernel.
func (k *Kernel) ObserveTap(ctx context.Context, t network.TapSpec) (network.ObservedTap, error) {
	var o network.ObservedTap
	if err := t.Validate(); err != nil {
		return o, err
	}
	if err := ctx.Err(); err != nil {
		return o, err
	}
	fw, err := k.openFilters()
	if err != nil {
		return o, err
	}
	defer fw.close()
	was, err := fw.readTap(ctx, t)
	switch {
	case errors.Is(err, mvm.ErrPrivilege):
		o.RulesUnknown = true
		return o, nil
	case err != nil:
		return o, err
	}
	o.Rules, o.Right = slices.Concat(was.egress.rules, was.rules.rules), was.right()
	if o.Right && t.Limit.BytesPerSec > 0 {
		o.Right, err = shaped(ctx, t)
	}
	return o, err
}

// Taps implements network.Kernel.
func (k *Kernel) Taps(ctx context.Context) ([]network.Tap, error) {
	s, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	links, err := again(s.LinkList)
	if err != nil {
		return nil, explain(err, "list interfaces")
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	guarded := guardedTaps()
	var taps []network.Tap
	for _, l := range links {
		a := l.Attrs()
		id, ours := network.AliasID(a.Alias)
		tun, ok := l.(*netlink.Tuntap)
		if !ok || !ours || tun.Mode != netlink.TUNTAP_MODE_TAP {
			continue
		}
		t := network.Tap{Name: a.Name, VMID: id, Bridge: names[a.MasterIndex], Up: a.Flags&net.FlagUp != 0, Guarded: guarded[a.Name]}
		if a.MasterIndex != 0 {
			port, err := s.LinkGetProtinfo(l)
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return nil, explain(err, "read the bridge port of tap %s", a.Name)
			}
			t.Isolated = port.Isolated
		}
		taps = append(taps, t)
	}
	slices.SortFunc(taps, func(a, b network.Tap) int { return strings.Compare(a.Name, b.Name) })
	return taps, nil
}

// guardedTaps returns the names of the taps whose guard stands. A guard without
// rules drops everything, so its chain is what counts.
func guardedTaps() map[string]bool {
	fw, err := openFirewall()
	if err != nil {
		return nil
	}
	defer fw.close()
	chains, err := fw.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil // unprivileged: not known, and so not claimed
	}
	guarded := make(map[string]bool, len(chains))
	for _, c := range chains {
		if c.Name == guardChain && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			guarded[c.Table.Name] = true
		}
	}
	return guarded
}
