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

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// table is one nftables table of ours as it is meant to be.
type table struct {
	family nftables.TableFamily
	name   string
	tag    string // how the comments of its rules begin
	chains []chain
}

// count is how many rules it has.
func (t table) count() int {
	n := 0
	for _, c := range t.chains {
		n += len(c.rules)
	}
	return n
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

// ruleTable renders a table with rules, and the chains that these need. A packet
// passes the chains of all tables, so none is there without rules.
func ruleTable(name, id string, rules []mvm.FirewallRule) table {
	accept := nftables.ChainPolicyAccept
	t := table{family: nftables.TableFamilyIPv4, name: name, tag: network.Tag(id) + ":"}
	for _, c := range network.Chains() {
		nc := chain{Chain: base[c]}
		nc.Name, nc.Policy = c, &accept
		for _, r := range rules {
			if r.ChainName == c {
				nc.rules = append(nc.rules, encode(r))
			}
		}
		if len(nc.rules) > 0 {
			t.chains = append(t.chains, nc)
		}
	}
	return t
}

// networkTable renders a network's table.
func networkTable(spec network.Spec) table {
	return ruleTable(spec.Bridge, spec.NetworkID, network.Rules(spec))
}

// guestTable renders a VM's table, which has no chains where the VM has no rules.
func guestTable(t network.TapSpec) table {
	return ruleTable(t.Name, t.VMID, network.GuestRules(t))
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
	chains  int  // of those wanted
	extra   int  // not wanted
	rules   []*nftables.Rule
}

// right says whether all base chains are there, with the rules.
func (s tableState) right(rules []mvm.FirewallRule, o owner) bool {
	return s.exists && s.chains == len(s.want.chains) && s.extra == 0 && network.InPlace(rules, observedRules(s, o))
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
	bare := others == 0 && len(s.rules) == 0 && int(use) <= ours
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

// removeTables removes those of the tables that are ours.
func removeTables(tables ...table) error {
	f, err := openFirewall()
	if err != nil {
		return err
	}
	defer f.close()
	for _, t := range tables {
		if err := f.remove(t); err != nil {
			return err
		}
	}
	return nil
}
