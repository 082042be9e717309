package linux

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/network"
)

// guardChain is the one chain of a tap's table.
const guardChain = "MVM-GUARD"

// Offsets of addresses, in an Ethernet header and in an ARP packet for IPv4
// over Ethernet (RFC 826).
const (
	etherSource    = 6
	arpSenderEther = 8
	arpSenderIP    = 14
)

// arpForIPv4 is how every ARP packet for IPv4 over Ethernet begins: hardware
// type 1, protocol type 0x0800, address lengths 6 and 4.
var arpForIPv4 = []byte{0, 1, 8, 0, 6, 4}

// guardTable renders the table that keeps a guest to its own MAC and IPv4
// address. What is neither IPv4 nor ARP is dropped too: IPv6 would let a guest
// announce itself as its neighbours' router.
func guardTable(t network.TapSpec) table {
	drop := nftables.ChainPolicyDrop
	tag := network.Tag(t.VMID) + ":"
	result := table{family: nftables.TableFamilyNetdev, name: t.Name, tag: tag}
	c := chain{Chain: nftables.Chain{
		Name: guardChain, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter, Policy: &drop, Device: t.Name,
	}}
	if t.IP.Is4() && len(t.MAC) == 6 { // removing needs the name and the tag only
		ip, nobody := t.IP.AsSlice(), make([]byte, 4)
		limitRules(&c, tag, t.Limit, false)
		c.add(tag+"mac", expr.VerdictDrop, field(expr.PayloadBaseLLHeader, etherSource, expr.CmpOpNeq, t.MAC))
		// With published ports the host's loopback is reached by way of the bridge;
		// its martian check then lets these pass.
		c.add(tag+"loopback", expr.VerdictDrop, protocol(unix.ETH_P_IP), network4(ipDestination, []byte{127}))
		c.add(tag+"ip", expr.VerdictAccept, protocol(unix.ETH_P_IP), network4(ipSource, ip))
		arp := func(comment string, sender []byte) {
			c.add(tag+comment, expr.VerdictAccept, protocol(unix.ETH_P_ARP), network4(0, arpForIPv4),
				network4(arpSenderEther, t.MAC), network4(arpSenderIP, sender))
		}
		arp("arp", ip)
		arp("arp_probe", nobody) // address conflict detection asks without a sender (RFC 5227)
	}
	result.chains = []chain{c}
	if limited := limitChainOf(t, tag); limited != nil {
		result.chains = append(result.chains, *limited)
	}
	return result
}

// apartChain is the one chain of the table that keeps a VM apart.
const apartChain = "MVM-APART"

// apartTable renders the table of the bridge family that keeps an isolated VM from
// all its neighbours: what goes from one port of a bridge to another passes it, what
// goes to or comes from the host does not. Without isolation it has no chain.
func apartTable(t network.TapSpec) table {
	accept := nftables.ChainPolicyAccept
	result := table{family: nftables.TableFamilyBridge, name: t.Name, tag: network.Tag(t.VMID) + ":"}
	if !t.Isolated {
		return result
	}
	c := chain{Chain: nftables.Chain{
		Name: apartChain, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityRef(bridgeFilter), Policy: &accept,
	}}
	c.add(result.tag+"apart", expr.VerdictDrop, matchInterface(expr.MetaKeyIIFNAME, t.Name))
	c.add(result.tag+"apart", expr.VerdictDrop, matchInterface(expr.MetaKeyOIFNAME, t.Name))
	result.chains = []chain{c}
	return result
}

// bridgeFilter is NF_BR_PRI_FILTER_BRIDGED (linux/netfilter_bridge.h).
const bridgeFilter = -200

func (c *chain) add(comment string, verdict expr.VerdictKind, matches ...exprs) {
	var e exprs
	for _, m := range matches {
		e = append(e, m...)
	}
	c.rules = append(c.rules, rule{exprs: append(e, &expr.Verdict{Kind: verdict}), comment: comment})
}

func field(base expr.PayloadBase, offset uint32, op expr.CmpOp, want []byte) exprs {
	return exprs{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(want))},
		&expr.Cmp{Op: op, Register: 1, Data: want},
	}
}

// network4 matches bytes of the packet behind the Ethernet header.
func network4(offset uint32, want []byte) exprs {
	return field(expr.PayloadBaseNetworkHeader, offset, expr.CmpOpEq, want)
}

func protocol(ethertype uint16) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, ethertype)},
	}
}
