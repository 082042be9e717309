package linux

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// observedRules reads the rules of a table back into the model. A rule that
// somebody put there by hand, or changed, comes back without a type or with what
// it really does, and so differs from every desired one.
func observedRules(s tableState, o owner) []mvm.FirewallRule {
	if s.foreign {
		return nil
	}
	var rules []mvm.FirewallRule
	for _, r := range s.rules {
		rules = append(rules, decode(r, o))
	}
	return rules
}

func decode(nr *nftables.Rule, o owner) mvm.FirewallRule {
	name, tag := o.name, comment(nr)
	r := mvm.FirewallRule{
		TableName: network.TableOf(nr.Chain.Name), ChainName: nr.Chain.Name, Protocol: "all",
		NetworkID: o.networkID, NetworkName: &name, CommentTag: &tag, IsActive: true,
	}
	if kind, ours := strings.CutPrefix(tag, network.Tag(o.id)+":"); ours {
		r.RuleType = kind
	}
	rest := slices.DeleteFunc(slices.Clone(nr.Exprs), func(e expr.Any) bool {
		_, counts := e.(*expr.Counter) // and changes nothing
		return counts
	})
	rest = decodeFields(rest, &r)
	end := max(len(rest)-1, 0)
	switch last(rest).(type) {
	case *expr.NAT:
		end = max(len(rest)-3, 0)
	case *expr.Dynset:
		end = max(len(rest)-len(record(r.Protocol)), 0)
	}
	target, known := decodeVerdict(rest[end:])
	if !known && slices.EqualFunc(rest[end:], record(r.Protocol), sameExpr) {
		target, known = network.TargetRecord, true
	}
	if r.Target = target; !known || !slices.EqualFunc(rest[:end], matches[network.MatchOf(r)], sameExpr) {
		r.RuleType = ""
	}
	text := network.Text(r)
	r.CommandString = &text
	return r
}

func sameExpr(a, b expr.Any) bool {
	switch a := a.(type) {
	case *expr.Lookup:
		b, ok := b.(*expr.Lookup)
		return ok && sameLookup(a, b)
	case *expr.Dynset:
		b, ok := b.(*expr.Dynset)
		return ok && sameDynset(a, b)
	}
	return reflect.DeepEqual(a, b)
}

func last(e exprs) expr.Any {
	if len(e) == 0 {
		return nil
	}
	return e[len(e)-1]
}

// decodeVerdict reads the end of a rule.
func decodeVerdict(e exprs) (target string, known bool) {
	switch len(e) {
	case 1:
		switch v := e[0].(type) {
		case *expr.Masq:
			return network.TargetMasquerade, *v == expr.Masq{}
		case *expr.Verdict:
			target := map[expr.VerdictKind]string{expr.VerdictAccept: network.TargetAccept, expr.VerdictDrop: network.TargetDrop}[v.Kind]
			return target, target != ""
		}
	case 3:
		addr, ok1 := e[0].(*expr.Immediate)
		port, ok2 := e[1].(*expr.Immediate)
		_, ok3 := e[2].(*expr.NAT)
		if !ok1 || !ok2 || !ok3 || len(port.Data) != 2 {
			return "", false
		}
		ip, ok := netip.AddrFromSlice(addr.Data)
		target := network.TargetDNAT + " " + netip.AddrPortFrom(ip, binary.BigEndian.Uint16(port.Data)).String()
		return target, ok && slices.EqualFunc(e, verdict(target), sameExpr)
	}
	return "", false
}

// decodeFields takes the matches of the rule's fields off its front.
func decodeFields(e exprs, r *mvm.FirewallRule) exprs {
	for len(e) > 1 {
		n := 0
		switch first := e[0].(type) {
		case *expr.Meta:
			n = decodeMeta(first, e[1], r)
		case *expr.Payload:
			n = decodePayload(first, e, r)
		case *expr.Fib:
			if slices.EqualFunc(e[:2], matchLocal, sameExpr) {
				r.Destination, n = network.Local, 2
			}
		}
		if n == 0 {
			break
		}
		e = e[n:]
	}
	return e
}

// decodeMeta returns how many expressions it read.
func decodeMeta(m *expr.Meta, second expr.Any, r *mvm.FirewallRule) int {
	cmp, ok := second.(*expr.Cmp)
	if !ok {
		return 0
	}
	if m.Key == expr.MetaKeyL4PROTO {
		for name, number := range protocols {
			if cmp.Op == expr.CmpOpEq && bytes.Equal(cmp.Data, []byte{number}) {
				r.Protocol = name
				return 2
			}
		}
		return 0
	}
	name := string(bytes.TrimRight(cmp.Data, "\x00"))
	switch {
	case cmp.Op == expr.CmpOpNeq:
		name = "!" + name
	case cmp.Op != expr.CmpOpEq:
		return 0
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
		return 0
	}
	return 2
}

// decodePayload returns how many expressions it read.
func decodePayload(p *expr.Payload, e exprs, r *mvm.FirewallRule) int {
	var cidr string
	n := 2
	if slices.EqualFunc(e[:2], matchNamed, sameExpr) {
		r.Destination = network.NamedAddresses
		return n
	}
	cmp, ok := e[1].(*expr.Cmp)
	switch {
	case ok && cmp.Op == expr.CmpOpEq && p.Base == expr.PayloadBaseTransportHeader && p.Offset == destinationPort && p.Len == 2:
		r.DPort = int(binary.BigEndian.Uint16(cmp.Data))
		return n
	case ok && cmp.Op == expr.CmpOpEq && p.Base == expr.PayloadBaseNetworkHeader && p.Len == 4:
		addr, _ := netip.AddrFromSlice(cmp.Data)
		cidr = netip.PrefixFrom(addr, 32).String()
	case len(e) > 2 && p.Base == expr.PayloadBaseNetworkHeader && p.Len == 4:
		cidr, ok = decodePrefix(e[1], e[2])
		if n = 3; !ok {
			return 0
		}
	default:
		return 0
	}
	switch p.Offset {
	case ipSource:
		r.Source = cidr
	case ipDestination:
		r.Destination = cidr
	default:
		return 0
	}
	return n
}

func decodePrefix(maskExpr, cmpExpr expr.Any) (string, bool) {
	mask, ok := maskExpr.(*expr.Bitwise)
	cmp, ok2 := cmpExpr.(*expr.Cmp)
	if !ok || !ok2 || cmp.Op != expr.CmpOpEq || len(mask.Mask) != 4 || len(mask.Xor) != 4 || slices.Max(mask.Xor) != 0 {
		return "", false
	}
	m := binary.BigEndian.Uint32(mask.Mask)
	addr, isAddr := netip.AddrFromSlice(cmp.Data)
	bits := 0
	for m&(1<<31) != 0 {
		bits, m = bits+1, m<<1
	}
	return netip.PrefixFrom(addr, bits).String(), isAddr && addr.Is4() && m == 0
}
