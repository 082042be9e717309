package linux

import (
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

// networkTable renders a network's table.
func networkTable(spec network.Spec) table {
	accept := nftables.ChainPolicyAccept
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) chain {
		return chain{Chain: nftables.Chain{Name: name, Type: kind, Hooknum: hook, Priority: priority, Policy: &accept}}
	}
	t := table{family: nftables.TableFamilyIPv4, name: spec.Bridge, tag: network.Tag(spec.NetworkID) + ":", chains: []chain{
		base(network.ChainForward, nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter),
		base(network.ChainInput, nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter),
		base(network.ChainPostrouting, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource),
	}}
	for _, r := range network.Rules(spec) {
		i := slices.IndexFunc(t.chains, func(c chain) bool { return c.Name == r.ChainName })
		t.chains[i].rules = append(t.chains[i].rules, encode(r))
	}
	return t
}

// firewall is one call's nftables socket.
type firewall struct{ *nftables.Conn }

func openFirewall() (*firewall, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, explain(err, "open nftables")
	}
	return &firewall{c}, nil
}

func (f *firewall) close() { _ = f.CloseLasting() }

// tableState is a table as it is in the kernel.
type tableState struct {
	want    table
	exists  bool
	foreign bool // it is there and not ours
	chains  int  // of ours
	rules   []*nftables.Rule
}

// right says whether all base chains of a network are there, with its rules.
func (s tableState) right(spec network.Spec) bool {
	return s.exists && s.chains == len(s.want.chains) && network.InPlace(network.Rules(spec), observedRules(s, spec))
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
	others, tagged := 0, false
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
		} else {
			others++
		}
		for _, r := range rules {
			tagged = tagged || strings.HasPrefix(comment(r), t.tag)
		}
		s.rules = append(s.rules, rules...)
	}
	// What a table holds besides chains (sets, maps) shows in its use count,
	// which the kernel sends in network order and the library reads in the
	// host's.
	use := min(got.Use, bits.ReverseBytes32(got.Use))
	bare := others == 0 && len(s.rules) == 0 && int(use) <= s.chains
	s.foreign = !tagged && !bare
	return s, nil
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

// removeTable removes a table of ours; another's stays.
func removeTable(t table) error {
	f, err := openFirewall()
	if err != nil {
		return err
	}
	defer f.close()
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
