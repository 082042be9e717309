package linux

import (
	"slices"
	"strings"

	"github.com/mvmctl/mvm/internal/network"
)

// saved are the tables of iptables-save.
type saved map[string]*savedTable

type savedTable struct {
	chains []string              // in order
	policy map[string]string     // of each; "-" for a chain that somebody made
	rules  map[string][][]string // of each, as arguments behind "-A CHAIN"
}

func parseSaved(text string) saved {
	s := saved{"filter": newSavedTable(), "nat": newSavedTable()}
	t := newSavedTable()
	for _, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "*"):
			if t = s[line[1:]]; t == nil {
				t = newSavedTable()
			}
		case strings.HasPrefix(line, ":"):
			if f := strings.Fields(line[1:]); len(f) > 1 {
				t.chains, t.policy[f[0]] = append(t.chains, f[0]), f[1]
				t.rules[f[0]] = nil
			}
		case strings.HasPrefix(line, "-A "):
			if args := xtSplit(line); len(args) > 1 {
				t.rules[args[1]] = append(t.rules[args[1]], args[2:])
			}
		}
	}
	return s
}

func newSavedTable() *savedTable {
	return &savedTable{policy: map[string]string{}, rules: map[string][][]string{}}
}

// The comments of rules that lead from chains of iptables to ours say what has to go
// with the last of them: nothing, the chain that iptables made for it, or the table.
const (
	jumpTag   = "mvm:jump"
	madeChain = ":chain"
	madeTable = ":table"
)

// jump returns the arguments of a rule that leads to a chain.
func jump(to, comment string) []string {
	return []string{"-m", "comment", "--comment", comment, "-j", to}
}

// isJump says whether a rule leads to a chain, whatever its packets.
func isJump(args []string, to string) bool {
	p := xtParse(args)
	return p.fields == xtParse(nil).fields && len(p.match) == 0 && slices.Equal(p.target, []string{to})
}

// leads says whether the first rule of a chain, and only that, leads to another.
func (t *savedTable) leads(from, to string) bool {
	rules := t.rules[from]
	return len(rules) > 0 && isJump(rules[0], to) && t.leadsOnce(from, to)
}

// leadsOnce says whether just one rule of a chain leads to another.
func (t *savedTable) leadsOnce(from, to string) bool {
	n := 0
	for _, r := range t.rules[from] {
		if isJump(r, to) {
			n++
		}
	}
	return n == 1
}

// made says what iptables would make for the first rule in a chain: madeChain,
// madeTable or nothing.
type made map[string]string

// script is a table's part of what iptables-restore reads.
type script struct{ decls, lines []string }

func (s *script) add(args ...string) { s.lines = append(s.lines, network.JoinArgs(args)) }

// put makes the script that brings a group in place, or removes it where it has no
// rules.
func (s saved) put(g group, m made) string {
	var b strings.Builder
	for _, table := range []string{"filter", "nat"} {
		sc := &script{}
		for _, c := range network.Chains() {
			if network.TableOf(c) == table {
				s[table].chain(sc, g, c, m)
			}
		}
		if len(sc.decls)+len(sc.lines) > 0 {
			b.WriteString("*" + table + "\n" + strings.Join(append(sc.decls, sc.lines...), "\n") + "\nCOMMIT\n")
		}
	}
	return b.String()
}

// chain brings a group's rules for one chain in place.
func (t *savedTable) chain(sc *script, g group, c string, m made) {
	own := ownChain(c, g)
	rules, from := rulesOf(g, c), builtin[c]
	if len(rules) == 0 {
		t.unchain(sc, c, own)
		return
	}
	sc.decls = append(sc.decls, ":"+own+" - [0:0]") // which empties it, in the same transaction
	if t.policy[c] == "" {
		sc.decls = append(sc.decls, ":"+c+" - [0:0]")
	}
	for _, r := range rules {
		for _, args := range network.IPTablesArgs(r) {
			sc.add(append([]string{"-A", own}, args...)...)
		}
	}
	if !t.leadsOnce(c, own) {
		t.deleteJumps(sc, c, own)
		tag := network.Tag(g.owner.id) + ":group"
		if g.early {
			sc.add(append([]string{"-I", c, "1"}, jump(own, tag)...)...)
		} else {
			sc.add(append([]string{"-A", c}, jump(own, tag)...)...)
		}
	}
	if !t.leads(from, c) {
		tag := t.jumpComment(from, c, m[c])
		t.deleteJumps(sc, from, c)
		sc.add(append([]string{"-I", from, "1"}, jump(c, tag)...)...)
	}
}

// unchain removes a group's chain, and the one that leads to it with the last group.
func (t *savedTable) unchain(sc *script, c, own string) {
	if t.policy[own] == "" {
		return
	}
	t.deleteJumps(sc, c, own)
	sc.add("-F", own)
	sc.add("-X", own)
	others := slices.ContainsFunc(t.rules[c], func(r []string) bool { return !isJump(r, own) })
	if t.policy[c] == "" || others {
		return
	}
	// Empty by now. An -F would have iptables-nft 1.8.9 forget the -D before it.
	t.deleteJumps(sc, builtin[c], c)
	sc.add("-X", c)
}

// deleteJumps removes all rules that lead from one chain to another.
func (t *savedTable) deleteJumps(sc *script, from, to string) {
	for _, r := range t.rules[from] {
		if isJump(r, to) {
			sc.add(append([]string{"-D", from}, r...)...)
		}
	}
}

// jumpComment is the comment for a rule that leads from a chain of iptables to ours:
// what an earlier one said has to go with it, or what is made for it now.
func (t *savedTable) jumpComment(from, to, made string) string {
	for _, r := range t.rules[from] {
		if rest, ours := strings.CutPrefix(xtParse(r).comment, jumpTag); ours && isJump(r, to) {
			return jumpTag + rest
		}
	}
	if made == madeChain && t.wasMade() {
		made = madeTable
	}
	return jumpTag + made
}

// wasMade says whether the table was made for us.
func (t *savedTable) wasMade() bool {
	for _, rules := range t.rules {
		for _, r := range rules {
			if xtParse(r).comment == jumpTag+madeTable {
				return true
			}
		}
	}
	return false
}
