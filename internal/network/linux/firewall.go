package linux

import (
	"context"
	"errors"
	"math/bits"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/network"
)

// table is one nftables table of ours as it is meant to be.
type table struct {
	family nftables.TableFamily
	name   string
	tag    string // how the comments of its rules begin
	chains []chain
	sets   []nftables.Set // that its rules use
}

// comments are those of its rules, which tell one from another.
func (t table) comments() []string {
	var all []string
	for _, c := range t.chains {
		for _, r := range c.rules {
			all = append(all, r.comment)
		}
	}
	slices.Sort(all)
	return all
}

// chain is a base chain with its rules.
type chain struct {
	nftables.Chain
	rules []rule
}

// rule is what stands in the kernel for one rule.
type rule struct {
	exprs   exprs
	comment string
}

// chainPrefix begins the names of all our chains.
const chainPrefix = "MVM-"

// base are the base chains that rules can stand in.
var base = map[string]nftables.Chain{
	network.ChainForward:     {Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter},
	network.ChainInput:       {Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter},
	network.ChainPostrouting: {Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource},
	network.ChainPrerouting:  {Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest},
	network.ChainOutput:      {Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest},
}

// nft is the backend of nftables: each group has a table of its own.
type nft struct{ *firewall }

// title implements backend.
func (nft) title(g group) string { return "nftables table ip " + g.name }

// table renders a group's table, with the chains that its rules need. A packet
// passes the chains of all tables, so none is there without rules.
func (nft) table(g group) table {
	accept := nftables.ChainPolicyAccept
	t := table{family: nftables.TableFamilyIPv4, name: g.name, tag: network.Tag(g.owner.id) + ":"}
	for _, c := range network.Chains() {
		nc := chain{Chain: base[c]}
		nc.Name, nc.Policy = c, &accept
		if g.early {
			nc.Priority = nftables.ChainPriorityRef(*nc.Priority - 1)
		}
		for _, r := range g.rules {
			if r.ChainName == c {
				nc.rules = append(nc.rules, encode(r))
			}
		}
		if len(nc.rules) > 0 {
			t.chains = append(t.chains, nc)
		}
	}
	t.sets = g.sets
	return t
}

// read implements backend.
func (n nft) read(_ context.Context, g group) (groupState, error) {
	t, err := n.firewall.read(n.table(g))
	if err != nil {
		return groupState{}, err
	}
	s := groupState{exists: t.exists, foreign: t.foreign, rules: observedRules(t, g.owner), table: t}
	s.right = t.exists == (len(g.rules) > 0) && t.chains == len(t.want.chains) && t.extra == 0 && network.InPlace(g.rules, s.rules)
	return s, nil
}

// put implements backend.
func (n nft) put(_ context.Context, g group, was groupState) error {
	return n.ensure(tableState{want: n.table(g), exists: was.table.exists})
}

// present implements backend.
func (n nft) present(g group) (bool, error) {
	_, err := n.ListTableOfFamily(g.name, nftables.TableFamilyIPv4)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, explain(err, "read nftables table %s", g.name)
}

// remove implements backend.
func (n nft) remove(_ context.Context, g group) error { return n.firewall.remove(n.table(g)) }

// firewall is one call's nftables socket.
type firewall struct {
	*nftables.Conn
	ip []*nftables.Chain // the chains of IPv4 as they were first read, nil before that
}

func openFirewall() (*firewall, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, explain(err, "open nftables")
	}
	return &firewall{Conn: c}, nil
}

// ipChains returns the chains of IPv4. Of ours there may be others by now; those of
// other programs, which they are asked for, are as they were when the call began.
func (f *firewall) ipChains() ([]*nftables.Chain, error) {
	if f.ip != nil {
		return f.ip, nil
	}
	chains, err := f.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	f.ip = chains
	return chains, explain(err, "read nftables chains")
}

func (f *firewall) close() { _ = f.CloseLasting() }

// tableState is a table as it is in the kernel.
type tableState struct {
	want    table
	exists  bool
	foreign bool // it is there and not ours
	chains  int  // of those wanted
	extra   int  // not wanted
	rules   []*nftables.Rule
}

// read reads the table's chains and rules. A table is ours when a rule in it
// carries our tag, or when it holds nothing but our empty chains, as it does
// after 'nft flush table'.
func (f *firewall) read(t table) (tableState, error) {
	s := tableState{want: t}
	got, err := f.ListTableOfFamily(t.name, t.family)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, explain(err, "read nftables table %s", t.name)
	}
	s.exists = true
	chains, err := f.ListChainsOfTableFamily(t.family)
	if err != nil {
		return s, explain(err, "read nftables chains")
	}
	if t.family == nftables.TableFamilyIPv4 && f.ip == nil {
		f.ip = chains
	}
	ours, others, tagged := 0, 0, false
	for _, c := range chains {
		if c.Table.Name != t.name {
			continue
		}
		rules, err := f.GetRules(got, c)
		if err != nil {
			return s, explain(err, "read nftables rules of table %s", t.name)
		}
		if slices.ContainsFunc(t.chains, func(w chain) bool { return w.Name == c.Name }) {
			s.chains++
		}
		if strings.HasPrefix(c.Name, chainPrefix) {
			ours++
		} else {
			others++
		}
		for _, r := range rules {
			tagged = tagged || strings.HasPrefix(comment(r), t.tag)
		}
		s.rules = append(s.rules, rules...)
	}
	s.extra = ours + others - s.chains
	// What a table holds besides chains (sets, maps) shows in its use count,
	// which the kernel sends in network order and the library reads in the
	// host's.
	use := min(got.Use, bits.ReverseBytes32(got.Use))
	bare := others == 0 && len(s.rules) == 0 && int(use) <= ours+len(t.sets)
	s.foreign = !tagged && !bare
	return s, nil
}

// comments are those of the rules that are there.
func (s tableState) comments() []string {
	var all []string
	for _, r := range s.rules {
		all = append(all, comment(r))
	}
	slices.Sort(all)
	return all
}

func comment(r *nftables.Rule) string {
	s, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return s
}

// put puts the whole table in place in one transaction: packets see the old
// rules or the new ones. Where was says that there is none, it is made without
// replacing anything, for the kernel waits for a grace period (several
// milliseconds) over each table that it destroys.
func (f *firewall) put(t table, was tableState) error {
	if was.exists {
		return f.write(t, true)
	}
	err := f.write(t, false)
	if errors.Is(err, unix.EEXIST) { // another process was quicker, with the same table
		return f.write(t, true)
	}
	return err
}

func (f *firewall) write(t table, replace bool) error {
	nt := &nftables.Table{Family: t.family, Name: t.name}
	if replace {
		f.AddTable(nt)
		f.DelTable(nt) // no error, for the line above has made it if it was missing
		f.AddTable(nt)
	} else {
		f.CreateTable(nt) // an error if it is there
	}
	for _, s := range t.sets {
		s.Table = nt
		if err := f.AddSet(&s, nil); err != nil {
			return explain(err, "write nftables table %s", t.name)
		}
	}
	for _, c := range t.chains {
		nc := c.Chain
		nc.Table = nt
		f.AddChain(&nc)
		for _, r := range c.rules {
			f.AddRule(&nftables.Rule{
				Table: nt, Chain: &nc, Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
			})
		}
	}
	err := f.Flush()
	if errors.Is(err, unix.ENOENT) { // a chain type that the kernel does not have
		err = errors.Join(unix.EOPNOTSUPP, err)
	}
	return explain(err, "write nftables table %s", t.name)
}

// remove removes a table of ours; another's stays.
func (f *firewall) remove(t table) error {
	s, err := f.read(t)
	if err != nil || !s.exists || s.foreign {
		return err
	}
	f.DelTable(&nftables.Table{Family: t.family, Name: t.name})
	if err := f.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return explain(err, "remove nftables table %s", t.name)
	}
	return nil
}
