package linux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// egressGroup are the rules that hold a VM to what it may reach; most have none. They
// are early: what they drop is counted before the network's rules see it.
func egressGroup(t network.TapSpec) group {
	return group{
		name: network.EgressTable(t.Name), owner: owner{t.VMID, t.NetworkID, t.VMName}, rules: network.EgressRules(t), early: true,
		sets: []nftables.Set{namedSet(nil), deniedSet(nil)},
	}
}

// namedSet holds addresses that are open for a time.
func namedSet(t *nftables.Table) nftables.Set {
	return nftables.Set{Table: t, Name: network.NamedAddresses[1:], KeyType: nftables.TypeIPAddr, HasTimeout: true, Size: network.MaxNamed}
}

// deniedSet holds where packets were sent to that were dropped: address, protocol,
// port, four bytes each.
func deniedSet(t *nftables.Table) nftables.Set {
	return nftables.Set{
		Table: t, Name: network.DeniedAddresses[1:], KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
		Concatenation: true, Dynamic: true, HasTimeout: true, Timeout: network.DeniedMemory, Size: network.MaxDenied,
	}
}

// The registers that a key of deniedSet is put together in: parts of four bytes, of
// which the first has the name of the whole register of sixteen.
const (
	keyRegister   = 1
	keyProtoReg   = unix.NFT_REG32_01
	keyPortReg    = unix.NFT_REG32_02
	updateElement = unix.NFT_DYNSET_OP_UPDATE
)

// record are the expressions that note where a packet is sent to. Other than a drop,
// an update that finds the set full ends its rule.
func record(protocol string) exprs {
	port := expr.Any(&expr.Immediate{Register: keyPortReg, Data: make([]byte, 4)})
	if protocol != "all" {
		port = &expr.Payload{DestRegister: keyPortReg, Base: expr.PayloadBaseTransportHeader, Offset: destinationPort, Len: 2}
	}
	return exprs{
		&expr.Payload{DestRegister: keyRegister, Base: expr.PayloadBaseNetworkHeader, Offset: ipDestination, Len: 4},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: keyProtoReg},
		port,
		&expr.Dynset{SrcRegKey: keyRegister, SetName: network.DeniedAddresses[1:], Operation: updateElement, Timeout: network.DeniedMemory, Exprs: exprs{&expr.Counter{}}},
	}
}

// matchNoPorts matches protocols whose ports are not noted.
var matchNoPorts = exprs{
	&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
	&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
}

// matchNamed matches addresses that are open for a time.
var matchNamed = exprs{
	&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: ipDestination, Len: 4},
	&expr.Lookup{SourceRegister: 1, SetName: network.NamedAddresses[1:]},
}

// sameLookup and sameDynset compare what the kernel tells of them.
func sameLookup(a, b *expr.Lookup) bool {
	return a.SourceRegister == b.SourceRegister && a.SetName == b.SetName && a.Invert == b.Invert && !a.IsDestRegSet && !b.IsDestRegSet
}

func sameDynset(a, b *expr.Dynset) bool {
	return a.SrcRegKey == b.SrcRegKey && a.SetName == b.SetName && a.Operation == b.Operation && a.Invert == b.Invert && len(a.Exprs) == len(b.Exprs)
}

// ensureEgress puts a VM's egress rules in place, before the VM can send anything, or
// removes them. Connections that it began before are decided over anew.
func (s *session) ensureEgress(f *filters, t network.TapSpec, was groupState) error {
	if was.right {
		return nil
	}
	if err := (nft{f.firewall}).put(s.ctx, egressGroup(t), was); err != nil || t.Egress == nil {
		return err
	}
	return s.forget(t.IP)
}

// forget has the kernel forget the connections that an address has begun. Their next
// packets are new to the rules; masquerading goes on by the same ports where these
// are free.
func (s *session) forget(addr netip.Addr) error {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return explain(err, "open conntrack")
	}
	defer h.Close()
	begun := &netlink.ConntrackFilter{}
	if err := begun.AddIP(netlink.ConntrackOrigSrcIP, addr.AsSlice()); err != nil {
		return err
	}
	_, err = again(func() (uint, error) { return h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, begun) })
	return explain(err, "forget connections of %s", addr)
}

// OpenEgress implements network.Kernel. An element's time is set anew only by making
// the element anew, all in one transaction.
func (k *Kernel) OpenEgress(ctx context.Context, t network.TapSpec, addrs []network.OpenAddr) error {
	if err := t.ValidateRemoval(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil || len(addrs) == 0 {
		return err
	}
	fw, err := openFirewall()
	if err != nil {
		return err
	}
	defer fw.close()
	set := namedSet(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: network.EgressTable(t.Name)})
	var bare, timed []nftables.SetElement
	for _, a := range addrs {
		key := a.Addr.Unmap()
		if !key.Is4() || a.For < time.Millisecond {
			return mvm.Errorf(mvm.ErrInvalid, "address %s for %s cannot be opened", a.Addr, a.For).WithHint("give an IPv4 address and a time")
		}
		bare = append(bare, nftables.SetElement{Key: key.AsSlice()})
		timed = append(timed, nftables.SetElement{Key: key.AsSlice(), Timeout: a.For})
	}
	err = errors.Join(fw.SetAddElements(&set, timed), fw.SetDeleteElements(&set, bare), fw.SetAddElements(&set, timed))
	if err == nil {
		err = fw.Flush()
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return mvm.Errorf(mvm.ErrNotFound, "VM %s has no egress rules with names", mvm.Quote(t.VMID)).WithHint("run 'mvm network sync'")
	case errors.Is(err, unix.ENFILE):
		return mvm.Errorf(mvm.ErrUnavailable, "%d addresses are open for VM %s, and no more can be", network.MaxNamed, mvm.Quote(t.VMID)).WithHint("wait until some are closed again")
	}
	return explain(err, "open addresses in nftables table %s", set.Table.Name)
}

// Denials implements network.Kernel.
func (k *Kernel) Denials(ctx context.Context, t network.TapSpec) (network.Denials, error) {
	d := network.Denials{To: []network.Denial{}}
	if err := t.ValidateRemoval(); err != nil {
		return d, err
	}
	if err := ctx.Err(); err != nil {
		return d, err
	}
	fw, err := openFirewall()
	if err != nil {
		return d, err
	}
	defer fw.close()
	// The list first: what is counted in it is then counted in all, too.
	set := deniedSet(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: network.EgressTable(t.Name)})
	elements, err := fw.settled(&set)
	if errors.Is(err, os.ErrNotExist) { // it may reach all, or the VM has just stopped
		return d, nil
	}
	if err != nil {
		return d, explain(err, "read nftables table %s", set.Table.Name)
	}
	now := time.Now()
	state, err := fw.read(nft{fw}.table(group{name: set.Table.Name, owner: owner{id: t.VMID}, sets: egressGroup(t).sets}))
	if err != nil || !state.exists || state.foreign {
		return d, err
	}
	for _, r := range state.rules {
		if v, ok := last(r.Exprs).(*expr.Verdict); ok && v.Kind == expr.VerdictDrop {
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					d.Packets, d.Bytes = d.Packets+c.Packets, d.Bytes+c.Bytes
				}
			}
		}
	}
	for _, e := range elements {
		if len(e.Key) != 12 {
			continue
		}
		to := network.Denial{Addr: netip.AddrFrom4([4]byte(e.Key[:4])), Protocol: e.Key[4], Port: binary.BigEndian.Uint16(e.Key[8:]), Last: now.Add(e.Expires - network.DeniedMemory)}
		if e.Counter != nil {
			to.Packets, to.Bytes = e.Counter.Packets, e.Counter.Bytes
		}
		d.To = append(d.To, to)
	}
	slices.SortFunc(d.To, func(a, b network.Denial) int {
		if c := b.Last.Compare(a.Last); c != 0 {
			return c
		}
		return bytes.Compare(a.Addr.AsSlice(), b.Addr.AsSlice())
	})
	return d, nil
}

// settled returns the elements of a set that packets add to. A hash table that grows
// while the kernel lists it is listed from its beginning again: elements come twice,
// and others then not at all (rhashtable_walk_start, lib/rhashtable.c). Such a list is
// asked for again, and has nothing twice in the end.
func (fw *firewall) settled(set *nftables.Set) ([]nftables.SetElement, error) {
	for tries := 3; ; tries-- {
		elements, err := fw.GetSetElements(set)
		if err != nil {
			return nil, err
		}
		once := distinct(elements)
		if len(once) == len(elements) || tries == 1 {
			return once, nil
		}
	}
}

// distinct returns elements of a set by their keys, each once.
func distinct(elements []nftables.SetElement) []nftables.SetElement {
	sorted := slices.SortedFunc(slices.Values(elements), func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	return slices.CompactFunc(sorted, func(a, b nftables.SetElement) bool { return bytes.Equal(a.Key, b.Key) })
}
