package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/run"
)

// place is a chain of another program where it lets others put rules.
type place struct {
	program, chain string
	by             string // a chain that leads there, which the program has, too
}

// places are known places for each of our chains, the first that is there counts.
// Docker's manual names DOCKER-USER for rules that come before its own; ufw has what
// 'ufw route' and 'ufw allow' add in ufw-user-forward and ufw-user-input. The last is
// iptables' own chain.
var places = map[string][]place{
	network.ChainForward: {{"Docker", "DOCKER-USER", "DOCKER-USER"}, {"ufw", "ufw-user-forward", "ufw-before-forward"}, {"iptables", "FORWARD", "FORWARD"}},
	network.ChainInput:   {{"ufw", "ufw-user-input", "ufw-before-input"}, {"iptables", "INPUT", "INPUT"}},
}

// passageChains are those of ours that other programs' chains may stop.
var passageChains = []string{network.ChainForward, network.ChainInput}

// dropper is a chain that drops what nobody accepts in it.
type dropper struct {
	network.Passage
	chain   string // of ours, that it stops
	place   string // the chain to put rules into
	flavour string // of iptables
	tags    []string

	firewalld bool // it has zones and no chain for others
}

// droppers finds what stops the guests of a network that our rules let through.
func (f *filters) droppers(ctx context.Context, s network.Spec) ([]dropper, error) {
	var found []dropper
	var firewalld *nftables.Chain
	ip, err := f.ipChains()
	if err != nil {
		return nil, err
	}
	inet, err := f.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, explain(err, "read nftables chains")
	}
	for _, chains := range [][]*nftables.Chain{ip, inet} {
		for _, c := range chains {
			chain := map[nftables.ChainHook]string{*nftables.ChainHookForward: network.ChainForward, *nftables.ChainHookInput: network.ChainInput}[hookOf(c)]
			if c.Hooknum == nil || chain == "" || strings.HasPrefix(c.Name, chainPrefix) || len(network.PassageRules(s, chain)) == 0 {
				continue
			}
			if ofFirewalld(c.Table) {
				firewalld = c
				continue
			}
			d, err := f.dropper(c, chain, chains)
			if err != nil {
				return nil, err
			}
			if d != nil {
				d.look(s)
				found = append(found, *d)
			}
		}
	}
	if firewalld != nil {
		found = append(found, *f.firewalldDropper(ctx, s, firewalld))
	}
	legacy, err := legacyDroppers()
	for i := range legacy {
		legacy[i].look(s)
	}
	return append(found, legacy...), err
}

func hookOf(c *nftables.Chain) nftables.ChainHook {
	if c.Hooknum == nil {
		return ^nftables.ChainHook(0)
	}
	return *c.Hooknum
}

// dropper looks at one base chain; nil says that it lets everything through that it
// does not name.
func (f *filters) dropper(c *nftables.Chain, chain string, all []*nftables.Chain) (*dropper, error) {
	drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
	ofIPTables := c.Table.Family == nftables.TableFamilyIPv4 && c.Table.Name == "filter" && c.Name == builtin[chain]
	if !drops {
		rules, err := f.GetRules(c.Table, c)
		if err != nil {
			return nil, explain(err, "read nftables chain %s", c.Name)
		}
		drops = len(rules) > 0 && dropsAll(rules[len(rules)-1])
	}
	if !drops {
		return nil, nil
	}
	d := &dropper{chain: chain, Passage: network.Passage{Program: "nftables", Place: "chain " + c.Name + " of table " + familyTitle(c.Table) + " drops what it does not accept"}}
	if !ofIPTables {
		return d, nil
	}
	there := func(name string) bool {
		return slices.ContainsFunc(all, func(c *nftables.Chain) bool { return c.Table.Name == "filter" && c.Name == name })
	}
	d.flavour = "-nft"
	d.Ours = iptables{flavour: d.flavour}.installed()
	d.choose(there)
	for _, name := range placeNames() {
		if !there(name) {
			continue
		}
		rules, err := f.GetRules(c.Table, &nftables.Chain{Name: name, Table: c.Table})
		if err != nil {
			return nil, explain(err, "read nftables chain %s", name)
		}
		for _, r := range rules {
			d.tags = append(d.tags, name+" "+xtComment(r))
		}
	}
	return d, nil
}

// choose picks the place to put rules into.
func (d *dropper) choose(there func(chain string) bool) {
	for _, p := range places[d.chain] {
		if there(p.chain) && there(p.by) {
			d.Program, d.place, d.Place = p.program, p.chain, "iptables chain "+p.chain
			return
		}
	}
}

func placeNames() []string {
	var names []string
	for _, c := range passageChains {
		for _, p := range places[c] {
			names = append(names, p.chain)
		}
	}
	return names
}

func familyTitle(t *nftables.Table) string {
	if t.Family == nftables.TableFamilyINet {
		return "inet " + t.Name
	}
	return "ip " + t.Name
}

// dropsAll says whether a rule ends every packet's way.
func dropsAll(r *nftables.Rule) bool {
	rest := slices.DeleteFunc(slices.Clone(r.Exprs), func(e expr.Any) bool {
		_, counts := e.(*expr.Counter)
		return counts
	})
	if len(rest) != 1 {
		return false
	}
	switch v := rest[0].(type) {
	case *expr.Verdict:
		return v.Kind == expr.VerdictDrop
	case *expr.Reject:
		return true
	case *expr.Target:
		return v.Name == "REJECT"
	}
	return false
}

// xtComment returns the comment that iptables gave a rule.
func xtComment(r *nftables.Rule) string {
	for _, e := range r.Exprs {
		if m, ok := e.(*expr.Match); ok && m.Name == "comment" {
			if c, ok := m.Info.(*xt.Comment); ok {
				return strings.TrimRight(string(*c), "\x00")
			}
		}
	}
	return comment(r)
}

// wanted are the rules that a network needs at a place, in arguments of iptables.
// With the backend of iptables they begin with the way to our own chain: what it drops
// is dropped, whichever program comes first by now.
func (d dropper) wanted(s network.Spec) [][]string {
	var lines [][]string
	if s.Backend == network.IPTables {
		for _, way := range []string{"-i", "-o"} {
			if d.chain == network.ChainForward || way == "-i" {
				lines = append(lines, []string{way, s.Bridge, "-m", "comment", "--comment", network.PassageTag(s.NetworkID) + "ours", "-j", d.chain})
			}
		}
	}
	for _, r := range network.PassageRules(s, d.chain) {
		for _, args := range network.IPTablesArgs(r) {
			lines = append(lines, append(args[:len(args)-1:len(args)-1], network.TargetAccept))
		}
	}
	return lines
}

// look sets what is to be added, removed and kept of a network's rules at a place, and
// whether they are right.
func (d *dropper) look(s network.Spec) {
	if !d.Ours || d.firewalld {
		return // it was said when it was found
	}
	var want, got []string
	for _, args := range d.wanted(s) {
		want = append(want, d.place+" "+xtParse(args).comment)
	}
	chains := []string{d.place}
	for _, p := range places[d.chain] {
		chains = append(chains, p.chain)
	}
	for _, t := range d.tags {
		chain, tag, _ := strings.Cut(t, " ")
		if slices.Contains(chains, chain) && strings.HasPrefix(tag, network.PassageTag(s.NetworkID)) {
			got = append(got, t)
		}
	}
	for _, w := range want {
		if i := slices.Index(got, w); i >= 0 {
			d.Kept++
			got = slices.Delete(got, i, i+1)
		} else {
			d.Added++
		}
	}
	if d.flavour != "-legacy" { // there, which chain a rule is in was not told
		d.Removed = len(got)
	}
	d.Open = d.Added == 0 && d.Removed == 0
}

// passages tells what stops a network's guests, and what lets them through.
func (f *filters) passages(ctx context.Context, s network.Spec) ([]network.Passage, error) {
	found, err := f.droppers(ctx, s)
	var all []network.Passage
	for _, d := range found {
		all = append(all, d.Passage)
	}
	return all, err
}

// ensurePassages puts the rules that a network needs at the places of other programs.
// Where that cannot be done, Observe tells; nothing fails.
func (k *Kernel) ensurePassages(ctx context.Context, f *filters, s network.Spec) ([]network.Change, error) {
	found, err := f.droppers(ctx, s)
	if err != nil {
		return nil, err
	}
	var changes []network.Change
	for _, d := range found {
		if !d.firewalld || !d.Ours || d.Open {
			continue
		}
		if err := f.trustBridge(ctx, s); err != nil {
			return changes, err
		}
		changes = append(changes, network.Change{What: d.Place, New: s.Bridge})
	}
	for _, flavour := range []string{"-nft", "-legacy"} {
		want := map[string][][]string{}
		var wrong []dropper
		for _, d := range found {
			if d.flavour == flavour && d.Ours {
				want[d.place] = append(want[d.place], d.wanted(s)...)
				if !d.Open {
					wrong = append(wrong, d)
				}
			}
		}
		if len(wrong) == 0 {
			continue
		}
		x := iptables{fw: f.firewall, run: k.run, flavour: flavour}
		err := x.change(ctx, func(t saved) (string, error) { return t["filter"].passage(network.PassageTag(s.NetworkID), want), nil })
		if err != nil {
			return changes, err
		}
		for _, d := range wrong {
			changes = append(changes, network.Change{What: "way through the rules of " + d.Program + " by " + d.Place, New: "open"})
		}
	}
	return changes, nil
}

// removePassages removes what ensurePassages put anywhere for a network.
func (k *Kernel) removePassages(ctx context.Context, f *filters, s network.Spec) error {
	if err := f.distrustBridge(ctx, s.Bridge); err != nil {
		return err
	}
	tag := network.PassageTag(s.NetworkID)
	for _, flavour := range []string{"-nft", "-legacy"} {
		there, err := f.hasPassage(flavour, tag)
		if err != nil || !there {
			if err != nil {
				return err
			}
			continue
		}
		x := iptables{fw: f.firewall, run: k.run, flavour: flavour}
		if err := x.change(ctx, func(t saved) (string, error) { return t["filter"].passage(tag, nil), nil }); err != nil {
			return err
		}
	}
	return nil
}

// hasPassage says whether rules of a network are at any place of others.
func (f *filters) hasPassage(flavour, tag string) (bool, error) {
	if flavour == "-legacy" {
		if !slices.Contains(legacyTables(), "filter") {
			return false, nil
		}
		_, entries, err := legacyTable("filter")
		return strings.Contains(string(entries), tag), explain(err, "read the rules of iptables-legacy")
	}
	filter := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
	if _, err := f.ListTableOfFamily(filter.Name, filter.Family); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return false, explain(err, "read nftables table filter")
	}
	for _, name := range placeNames() {
		rules, err := f.GetRules(filter, &nftables.Chain{Name: name, Table: filter})
		if err != nil && !isMissing(err) {
			return false, explain(err, "read nftables chain %s", name)
		}
		for _, r := range rules {
			if strings.HasPrefix(xtComment(r), tag) {
				return true, nil
			}
		}
	}
	return false, nil
}

// passage makes the script that leaves just the rules wanted, by their chains, of
// those whose comments begin with a tag.
func (t *savedTable) passage(tag string, want map[string][][]string) string {
	sc := &script{}
	for _, chain := range t.chains {
		var others [][]string
		for _, r := range t.rules[chain] {
			if strings.HasPrefix(xtParse(r).comment, tag) {
				sc.add(append([]string{"-D", chain}, r...)...)
			} else {
				others = append(others, r)
			}
		}
		for i, args := range want[chain] {
			if end := len(others); end > 0 && endsAll(others[end-1]) {
				sc.add(append([]string{"-I", chain, strconv.Itoa(end + i)}, args...)...)
			} else {
				sc.add(append([]string{"-A", chain}, args...)...)
			}
		}
	}
	if len(sc.lines) == 0 {
		return ""
	}
	return "*filter\n" + strings.Join(sc.lines, "\n") + "\nCOMMIT\n"
}

// endsAll says whether a rule lets no packet through to the next.
func endsAll(args []string) bool {
	p := xtParse(args)
	if p.fields != xtParse(nil).fields || len(p.match) > 0 || len(p.target) == 0 {
		return false
	}
	return slices.Contains([]string{"RETURN", "DROP", "REJECT"}, p.target[0])
}

// installed says whether the programs of a flavour are there.
func (x iptables) installed() bool {
	_, err := run.Look(x.program("-restore"))
	return err == nil
}

// legacyDroppers finds what drops in the tables of iptables-legacy.
func legacyDroppers() ([]dropper, error) {
	if !slices.Contains(legacyTables(), "filter") {
		return nil, nil
	}
	info, entries, err := legacyTable("filter")
	if err != nil {
		return nil, explain(err, "read the rules of iptables-legacy")
	}
	text := string(entries)
	var found []dropper
	for _, chain := range passageChains {
		if !legacyDrops(info, entries, chain) {
			continue
		}
		d := dropper{chain: chain, flavour: "-legacy", Passage: network.Passage{Ours: iptables{flavour: "-legacy"}.installed()}}
		d.choose(func(name string) bool { return name == builtin[chain] || strings.Contains(text, name+"\x00") })
		// Which chain a rule is in cannot be told from here; it was put into the place.
		for rest := text; ; {
			_, after, ok := strings.Cut(rest, "mvm:")
			if !ok {
				break
			}
			tag, _, _ := strings.Cut(after, "\x00")
			d.tags, rest = append(d.tags, d.place+" mvm:"+tag), after
		}
		found = append(found, d)
	}
	return found, nil
}

// legacyDrops says whether a chain's policy in iptables-legacy is to drop: the verdict
// of the entry at its underflow (linux/netfilter_ipv4/ip_tables.h, struct ipt_entry;
// linux/netfilter/x_tables.h, struct xt_standard_target).
func legacyDrops(info, entries []byte, chain string) bool {
	const underflows, targetAt, verdictAt = iptNameLen + 4 + 5*4, 88, 32
	hook := map[string]int{network.ChainInput: 1, network.ChainForward: 2}[chain]
	at := int(binary.NativeEndian.Uint32(info[underflows+4*hook:]))
	if at+targetAt+2 > len(entries) {
		return false
	}
	at += int(binary.NativeEndian.Uint16(entries[at+targetAt:])) + verdictAt
	return at+4 <= len(entries) && int32(binary.NativeEndian.Uint32(entries[at:])) == -1 //nolint:gosec // -NF_DROP - 1
}
