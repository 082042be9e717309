package linux

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// This file turns rules of the model into arguments of iptables and back, as
// iptables-save prints them (iptables(8), iptables-extensions(8)).

// targetReturn stands for the model's ACCEPT: it ends the rules of the group and
// lets the other groups decide.
const targetReturn = "RETURN"

// xtMatches are the arguments of the matches.
var xtMatches = map[network.Match][]string{
	network.MatchReplies: {"-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"},
	network.MatchDNAT:    {"-m", "conntrack", "--ctstate", "DNAT"},
	network.MatchDNATOut: {"-m", "conntrack", "--ctstate", "DNAT", "--ctdir", "REPLY"},
	network.MatchPing:    {"-m", "icmp", "--icmp-type", "8"},
	network.MatchMarked:  {"-m", "mark", "--mark", markText},
}

var markText = "0x" + strconv.FormatUint(network.NoCloudMark, 16)

// markTarget marks, and does not end anything; the rule that follows does.
var markTarget = []string{"MARK", "--set-xmark", markText + "/0xffffffff"}

// continued ends the comment of the second rule where one of the model takes two.
const continued = "+"

// xtArgs renders a rule of the model: one rule of iptables, or two.
func xtArgs(r mvm.FirewallRule) [][]string {
	match := slices.Concat(xtFields(r), xtMatches[network.MatchOf(r)])
	line := func(more []string, comment string, target ...string) []string {
		return slices.Concat(match, more, []string{"-m", "comment", "--comment", comment, "-j"}, target)
	}
	comment := *r.CommentTag
	switch to, dnat := network.DNATTo(r.Target); {
	case dnat:
		return [][]string{line(nil, comment, network.TargetDNAT, "--to-destination", to.String())}
	case r.Target == network.TargetMark:
		return [][]string{line(nil, comment, markTarget...), line(nil, comment+continued, targetReturn)}
	case r.Target == network.TargetAccept:
		return [][]string{line(nil, comment, targetReturn)}
	}
	return [][]string{line(nil, comment, r.Target)}
}

// xtFields renders what a rule's own fields match.
func xtFields(r mvm.FirewallRule) []string {
	var args []string
	add := func(flag, value string) {
		if rest, not := strings.CutPrefix(value, "!"); not {
			args = append(args, "!", flag, rest)
		} else if value != "" {
			args = append(args, flag, value)
		}
	}
	add("-s", r.Source)
	if r.Destination != network.Local {
		add("-d", r.Destination)
	}
	add("-i", r.InInterface)
	add("-o", r.OutInterface)
	if r.Protocol != "all" {
		add("-p", r.Protocol)
	}
	if r.Destination == network.Local {
		args = append(args, "-m", "addrtype", "--dst-type", "LOCAL")
	}
	if r.DPort != 0 {
		args = append(args, "-m", r.Protocol, "--dport", strconv.Itoa(r.DPort))
	}
	return args
}

// xtText is a rule as people see it in 'iptables -S', under the chain of the model.
func xtText(r mvm.FirewallRule) string {
	var lines []string
	for _, args := range xtArgs(r) {
		lines = append(lines, r.ChainName+" "+xtJoin(args))
	}
	return strings.Join(lines, "; ")
}

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
			want := xtArgs(r)
			if same := xtSame(p, want[0]); same && (len(want) == 1 || i+1 < len(lines) && xtSame(xtParse(lines[i+1]), want[1])) {
				i += len(want) - 1
				text := xtText(r)
				r.CommandString = &text
				rules = append(rules, r)
				continue
			}
		}
		r.RuleType, r.Target = "", strings.Join(p.target, " ")
		text := chain + " " + xtJoin(lines[i])
		r.CommandString = &text
		rules = append(rules, r)
	}
	return rules
}

// xtTarget returns the model's target, "" for one that the model does not have.
func xtTarget(t []string) string {
	switch {
	case slices.Equal(t, []string{targetReturn}):
		return network.TargetAccept
	case slices.Equal(t, []string{network.TargetDrop}), slices.Equal(t, []string{network.TargetMasquerade}):
		return t[0]
	case slices.Equal(t, markTarget):
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

// xtJoin writes arguments as iptables-restore reads them.
func xtJoin(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if quoted[i] = a; a == "" || strings.ContainsAny(a, " \t\"'\\#;") {
			quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(a) + `"`
		}
	}
	return strings.Join(quoted, " ")
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
