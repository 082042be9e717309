package linux

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

type exprs = []expr.Any

// Offsets of addresses in an IPv4 header (RFC 791).
const (
	ipSource      = 12
	ipDestination = 16
)

// replies is the mask of conntrack states of a connection that is under way.
const replies = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED

// encode turns a rule of the model into nftables expressions.
func encode(r mvm.FirewallRule) rule {
	var e exprs
	e = append(e, matchInterface(expr.MetaKeyIIFNAME, r.InInterface)...)
	e = append(e, matchInterface(expr.MetaKeyOIFNAME, r.OutInterface)...)
	e = append(e, matchPrefix(ipSource, r.Source)...)
	e = append(e, matchPrefix(ipDestination, r.Destination)...)
	e = append(e, matchPort(r)...)
	if network.RepliesOnly(r) {
		e = append(e, &expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(replies), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
	}
	switch r.Target {
	case network.TargetMasquerade:
		e = append(e, &expr.Masq{})
	case network.TargetAccept:
		e = append(e, &expr.Verdict{Kind: expr.VerdictAccept})
	default:
		e = append(e, &expr.Verdict{Kind: expr.VerdictDrop})
	}
	return rule{exprs: e, comment: *r.CommentTag}
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
	if err != nil { // "": anything; Spec.Validate has seen to the rest
		return nil
	}
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return exprs{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// destinationPort is the offset of the port in a TCP header (RFC 9293).
const destinationPort = 2

// matchPort matches the destination port of TCP, and anything with 0.
func matchPort(r mvm.FirewallRule) exprs {
	if r.DPort == 0 {
		return nil
	}
	return exprs{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: destinationPort, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(r.DPort))}, //nolint:gosec // Validate has seen to it
	}
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// observedRules reads the rules of a network's table back into the model. A
// rule that somebody put there by hand, or changed, comes back without a type
// or with what it really does, and so differs from every desired one.
func observedRules(s tableState, spec network.Spec) []mvm.FirewallRule {
	if s.foreign {
		return nil
	}
	var rules []mvm.FirewallRule
	for _, r := range s.rules {
		rules = append(rules, decode(r, spec))
	}
	return rules
}

func decode(nr *nftables.Rule, spec network.Spec) mvm.FirewallRule {
	name, tag := spec.Name, comment(nr)
	r := mvm.FirewallRule{
		TableName: "filter", ChainName: nr.Chain.Name, Protocol: "all",
		NetworkID: spec.NetworkID, NetworkName: &name, CommentTag: &tag, IsActive: true,
	}
	if nr.Chain.Name == network.ChainPostrouting {
		r.TableName = "nat"
	}
	if kind, ours := strings.CutPrefix(tag, network.Tag(spec.NetworkID)+":"); ours {
		r.RuleType = kind
	}
	rest, isReplies := decodeMatches(nr.Exprs, &r)
	known := false
	if len(rest) == 1 {
		known = true
		switch v := rest[0].(type) {
		case *expr.Masq:
			r.Target = network.TargetMasquerade
			known = *v == expr.Masq{}
		case *expr.Verdict:
			r.Target = map[expr.VerdictKind]string{expr.VerdictAccept: network.TargetAccept, expr.VerdictDrop: network.TargetDrop}[v.Kind]
			known = r.Target != ""
		default:
			known = false
		}
	}
	if !known || isReplies != network.RepliesOnly(r) {
		r.RuleType = ""
	}
	text := network.Text(r)
	r.CommandString = &text
	return r
}

// decodeMatches takes the matches that encode makes off the front of a rule.
func decodeMatches(e exprs, r *mvm.FirewallRule) (rest exprs, isReplies bool) {
	for len(e) > 1 {
		switch first := e[0].(type) {
		case *expr.Meta:
			cmp, ok := e[1].(*expr.Cmp)
			if !ok || !decodeInterface(first, cmp, r) {
				return e, isReplies
			}
			e = e[2:]
		case *expr.Payload:
			if len(e) < 3 || !decodePrefix(first, e[1], e[2], r) {
				return e, isReplies
			}
			e = e[3:]
		case *expr.Ct:
			if len(e) < 3 || !decodeReplies(first, e[1], e[2]) {
				return e, isReplies
			}
			isReplies = true
			e = e[3:]
		case *expr.Counter: // counts, and changes nothing
			e = e[1:]
		default:
			return e, isReplies
		}
	}
	return e, isReplies
}

func decodeInterface(m *expr.Meta, cmp *expr.Cmp, r *mvm.FirewallRule) bool {
	name := string(bytes.TrimRight(cmp.Data, "\x00"))
	switch {
	case cmp.Op == expr.CmpOpNeq:
		name = "!" + name
	case cmp.Op != expr.CmpOpEq:
		return false
	}
	if len(cmp.Data) != unix.IFNAMSIZ { // a pattern such as "eth*"
		name += "*"
	}
	switch m.Key {
	case expr.MetaKeyIIFNAME:
		r.InInterface = name
	case expr.MetaKeyOIFNAME:
		r.OutInterface = name
	default:
		return false
	}
	return true
}

func decodePrefix(p *expr.Payload, maskExpr, cmpExpr expr.Any, r *mvm.FirewallRule) bool {
	mask, ok := maskExpr.(*expr.Bitwise)
	cmp, ok2 := cmpExpr.(*expr.Cmp)
	if !ok || !ok2 || p.Base != expr.PayloadBaseNetworkHeader || p.Len != 4 || cmp.Op != expr.CmpOpEq || len(mask.Mask) != 4 {
		return false
	}
	m := binary.BigEndian.Uint32(mask.Mask)
	addr, isAddr := netip.AddrFromSlice(cmp.Data)
	if !isAddr || !addr.Is4() || slices.Max(mask.Xor) != 0 {
		return false
	}
	bits := 0
	for m&(1<<31) != 0 {
		bits, m = bits+1, m<<1
	}
	if m != 0 {
		return false
	}
	prefix := netip.PrefixFrom(addr, bits).String()
	switch p.Offset {
	case ipSource:
		r.Source = prefix
	case ipDestination:
		r.Destination = prefix
	default:
		return false
	}
	return true
}

func decodeReplies(ct *expr.Ct, maskExpr, cmpExpr expr.Any) bool {
	mask, ok := maskExpr.(*expr.Bitwise)
	cmp, ok2 := cmpExpr.(*expr.Cmp)
	return ok && ok2 && ct.Key == expr.CtKeySTATE && bytes.Equal(mask.Mask, native32(replies)) &&
		cmp.Op == expr.CmpOpNeq && bytes.Equal(cmp.Data, make([]byte, 4))
}
