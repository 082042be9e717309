package network

import (
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
)

// TargetReturn is what the model's ACCEPT is in iptables: it ends the rules of one
// owner, and lets those of the others decide.
const TargetReturn = "RETURN"

// xtMatches are the arguments of the matches.
var xtMatches = map[Match][]string{
	MatchReplies: {"-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"},
	MatchDNAT:    {"-m", "conntrack", "--ctstate", "DNAT"},
	MatchDNATOut: {"-m", "conntrack", "--ctstate", "DNAT", "--ctdir", "REPLY"},
	MatchPing:    {"-m", "icmp", "--icmp-type", "8"},
	MatchMarked:  {"-m", "mark", "--mark", markText},
}

var markText = "0x" + strconv.FormatUint(NoCloudMark, 16)

// IPTablesMark is the target that marks, and does not end anything; the rule that follows does.
var IPTablesMark = []string{"MARK", "--set-xmark", markText + "/0xffffffff"}

// continued ends the comment of the second rule where one of the model takes two.
const continued = "+"

// IPTablesArgs renders a rule of the model in arguments of iptables: one rule, or two
// (iptables(8), iptables-extensions(8)).
func IPTablesArgs(r mvm.FirewallRule) [][]string {
	match := slices.Concat(xtFields(r), xtMatches[MatchOf(r)])
	line := func(more []string, comment string, target ...string) []string {
		return slices.Concat(match, more, []string{"-m", "comment", "--comment", comment, "-j"}, target)
	}
	comment := *r.CommentTag
	switch to, dnat := DNATTo(r.Target); {
	case dnat:
		return [][]string{line(nil, comment, TargetDNAT, "--to-destination", to.String())}
	case r.Target == TargetMark:
		return [][]string{line(nil, comment, IPTablesMark...), line(nil, comment+continued, TargetReturn)}
	case r.Target == TargetAccept:
		return [][]string{line(nil, comment, TargetReturn)}
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
	if r.Destination != Local {
		add("-d", r.Destination)
	}
	add("-i", r.InInterface)
	add("-o", r.OutInterface)
	if r.Protocol != "all" {
		add("-p", r.Protocol)
	}
	if r.Destination == Local {
		args = append(args, "-m", "addrtype", "--dst-type", "LOCAL")
	}
	if r.DPort != 0 {
		args = append(args, "-m", r.Protocol, "--dport", strconv.Itoa(r.DPort))
	}
	return args
}

// iptablesText is a rule as people see it in 'iptables -S', under the chain of the
// model.
func iptablesText(r mvm.FirewallRule) string {
	var lines []string
	for _, args := range IPTablesArgs(r) {
		lines = append(lines, r.ChainName+" "+JoinArgs(args))
	}
	return strings.Join(lines, "; ")
}

// JoinArgs writes arguments as iptables-restore reads them.
func JoinArgs(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if quoted[i] = a; a == "" || strings.ContainsAny(a, " \t\"'\\#;") {
			quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(a) + `"`
		}
	}
	return strings.Join(quoted, " ")
}
