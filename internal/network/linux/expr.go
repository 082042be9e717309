package linux

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

type exprs = []expr.Any

// Offsets of addresses in an IPv4 header (RFC 791), and of what is matched in the
// headers behind it.
const (
	ipSource        = 12
	ipDestination   = 16
	destinationPort = 2
	icmpType        = 0
)

const icmpEchoRequest = 8 // RFC 792

// Bits of conntrack's state and status (linux/netfilter/nf_conntrack_common.h).
const (
	replies      = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	ctStatusDNAT = 1 << 5
	ctReplyDir   = 1
)

// fibLocal is the type of route to an address of the host (RTN_LOCAL).
const fibLocal = 2

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP}

// encode turns a rule of the model into nftables expressions. What stands in them,
// and in which order, is what decode reads.
func encode(r mvm.FirewallRule) rule {
	var e exprs
	e = append(e, matchInterface(expr.MetaKeyIIFNAME, r.InInterface)...)
	e = append(e, matchInterface(expr.MetaKeyOIFNAME, r.OutInterface)...)
	e = append(e, matchPrefix(ipSource, r.Source)...)
	switch r.Destination {
	case network.Local:
		e = append(e, matchLocal...)
	case network.NamedAddresses:
		e = append(e, matchNamed...)
	default:
		e = append(e, matchPrefix(ipDestination, r.Destination)...)
	}
	if number, ok := protocols[r.Protocol]; ok {
		e = append(e, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}})
	}
	if r.DPort != 0 {
		e = append(e, transport(destinationPort, binary.BigEndian.AppendUint16(nil, uint16(r.DPort)))...) //nolint:gosec // validated
	}
	e = append(e, matches[network.MatchOf(r)]...)
	switch {
	case r.Target == network.TargetRecord:
		e = append(e, record(r.Protocol)...)
	case r.RuleType == network.RuleEgress && r.Target == network.TargetDrop:
		e = append(e, &expr.Counter{})
		fallthrough
	default:
		e = append(e, verdict(r.Target)...)
	}
	return rule{exprs: e, comment: *r.CommentTag}
}

// matches are the expressions of the matches.
var matches = map[network.Match]exprs{
	network.MatchReplies: ctBits(expr.CtKeySTATE, replies),
	network.MatchDNAT:    ctBits(expr.CtKeySTATUS, ctStatusDNAT),
	network.MatchDNATOut: append(ctBits(expr.CtKeySTATUS, ctStatusDNAT),
		&expr.Ct{Register: 1, Key: expr.CtKeyDIRECTION}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{ctReplyDir}}),
	network.MatchNoPorts: matchNoPorts,
	network.MatchPing:    transport(icmpType, []byte{icmpEchoRequest}),
	network.MatchMarked: {
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native32(network.NoCloudMark)},
	},
}

// matchLocal matches what is sent to any address of the host.
var matchLocal = exprs{
	&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
	&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native32(fibLocal)},
}

// ctBits matches where one of the bits is set.
func ctBits(key expr.CtKey, mask uint32) exprs {
	return exprs{
		&expr.Ct{Register: 1, Key: key},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// transport matches bytes of the header behind the IPv4 header.
func transport(offset uint32, want []byte) exprs {
	return field(expr.PayloadBaseTransportHeader, offset, expr.CmpOpEq, want)
}

func verdict(target string) exprs {
	if to, ok := network.DNATTo(target); ok {
		return exprs{
			&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegAddrMax: 1, RegProtoMin: 2, RegProtoMax: 2, Specified: true},
		}
	}
	switch target {
	case network.TargetMark:
		return exprs{
			&expr.Immediate{Register: 1, Data: native32(network.NoCloudMark)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
	case network.TargetMasquerade:
		return exprs{&expr.Masq{}}
	case network.TargetAccept:
		return exprs{&expr.Verdict{Kind: expr.VerdictAccept}}
	}
	return exprs{&expr.Verdict{Kind: expr.VerdictDrop}}
}

// matchInterface matches an interface's name, all others with a leading '!',
// and anything with "".
func matchInterface(key expr.MetaKey, name string) exprs {
	if name == "" {
		return nil
	}
	op := expr.CmpOpEq
	if rest, not := strings.CutPrefix(name, "!"); not {
		op, name = expr.CmpOpNeq, rest
	}
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return exprs{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

func matchPrefix(offset uint32, cidr string) exprs {
	p, err := netip.ParsePrefix(cidr)
	if err != nil { // "": anything; what the rules are made from is validated
		return nil
	}
	addr := p.Masked().Addr().AsSlice()
	if p.Bits() == 32 {
		return network4(offset, addr)
	}
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return exprs{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr},
	}
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
