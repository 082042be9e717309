package linux

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// This file reads rules of iptables, as iptables-save prints them, back into the model.

// parsedRule is a rule of iptables-save, taken apart.
type parsedRule struct {
	fields  mvm.FirewallRule // what the model's fields hold
	match   []string         // options of matches that no field holds, without their "-m"
	comment string
	target  []string // with its options
}

// xtParse takes the arguments of a rule apart. What it does not know lands among the
// matches, so that such a rule differs from any of ours.
func xtParse(args []string) parsedRule {
	p := parsedRule{fields: mvm.FirewallRule{Protocol: "all"}}
	fields := map[string]*string{"-s": &p.fields.Source, "-d": &p.fields.Destination, "-i": &p.fields.InInterface, "-o": &p.fields.OutInterface, "-p": &p.fields.Protocol}
	for i := 0; i < len(args); i++ {
		not := args[i] == "!" && i+1 < len(args)
		if not {
			i++
		}
		flag, value, last := args[i], "", i+1 >= len(args)
		if !last {
			value = args[i+1]
		}
		field, known := fields[flag]
		switch {
		case last:
			p.match = append(p.match, flag)
		case flag == "-j" || flag == "-g":
			p.target = args[i+1:]
			if flag == "-g" { // which does not come back
				p.target = args[i:]
			}
			return p
		case known && *field == "" || flag == "-p":
			if *field = value; not {
				*field = "!" + value
			}
			i++
		case flag == "-m":
			i++
		case flag == "--comment" && !not:
			p.comment = value
			i++
		case flag == "--dport" && !not && p.fields.DPort == 0 && portOf(value) > 0:
			p.fields.DPort = portOf(value)
			i++
		case flag == "--dst-type" && !not && value == "LOCAL" && p.fields.Destination == "":
			p.fields.Destination = network.Local
			i++
		case not:
			p.match = append(p.match, "!", flag)
		default:
			p.match = append(p.match, flag)
		}
	}
	return p
}

func portOf(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n > 65535 {
		return 0
	}
	return n
}

// xtDecode reads the rules of one chain back into the model. A rule that somebody
// put there by hand, or changed, comes back without a type, and so differs from
// every desired one.
func xtDecode(chain string, lines [][]string, o owner) []mvm.FirewallRule {
	var rules []mvm.FirewallRule
	for i := 0; i < len(lines); i++ {
		p := xtParse(lines[i])
		r := p.fields
		name, tag := o.name, p.comment
		r.TableName, r.ChainName = network.TableOf(chain), chain
		r.NetworkID, r.NetworkName, r.CommentTag, r.IsActive = o.networkID, &name, &tag, true
		r.Target = xtTarget(p.target)
		kind, ours := strings.CutPrefix(tag, network.Tag(o.id)+":")
		if r.RuleType = kind; ours && r.Target != "" {
			want := network.IPTablesArgs(r)
			if same := xtSame(p, want[0]); same && (len(want) == 1 || i+1 < len(lines) && xtSame(xtParse(lines[i+1]), want[1])) {
				i += len(want) - 1
				text := network.TextIn(network.IPTables, r)
				r.CommandString = &text
				rules = append(rules, r)
				continue
			}
		}
		r.RuleType, r.Target = "", strings.Join(p.target, " ")
		text := chain + " " + network.JoinArgs(lines[i])
		r.CommandString = &text
		rules = append(rules, r)
	}
	return rules
}

// xtTarget returns the model's target, "" for one that the model does not have.
func xtTarget(t []string) string {
	switch {
	case slices.Equal(t, []string{network.TargetReturn}):
		return network.TargetAccept
	case slices.Equal(t, []string{network.TargetDrop}), slices.Equal(t, []string{network.TargetMasquerade}):
		return t[0]
	case slices.Equal(t, network.IPTablesMark):
		return network.TargetMark
	case len(t) == 3 && t[0] == network.TargetDNAT && t[1] == "--to-destination":
		if to, err := netip.ParseAddrPort(t[2]); err == nil {
			return network.TargetDNAT + " " + to.String()
		}
	}
	return ""
}

// xtSame compares a rule with arguments of ours, whatever the order of the matches.
func xtSame(p parsedRule, args []string) bool {
	q := xtParse(args)
	return p.fields == q.fields && slices.Equal(p.match, q.match) && p.comment == q.comment && slices.Equal(p.target, q.target)
}

// xtSplit reads a line of iptables-save.
func xtSplit(line string) []string {
	var args []string
	var b strings.Builder
	inWord, inQuotes := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && inQuotes && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		case c == '"':
			inQuotes, inWord = !inQuotes, true
		case c == ' ' && !inQuotes:
			if inWord {
				args = append(args, b.String())
				b.Reset()
			}
			inWord = false
		default:
			inWord = true
			b.WriteByte(c)
		}
	}
	if inWord {
		args = append(args, b.String())
	}
	return args
}
