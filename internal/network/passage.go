package network

import (
	"slices"

	"github.com/mvmctl/mvm"
)

// Passage is a place where another program drops what it does not accept, so that
// what our rules accept does not get through: a drop is final in whichever table it
// is (Documentation of nftables: base chains).
type Passage struct {
	Program string // "Docker", "ufw", "firewalld", "iptables" or "nftables"
	Place   string // where its users put rules of their own, or what drops
	Open    bool   // what the network needs is accepted there
	Ours    bool   // we can put rules there; else it is the user's to do

	// Of the rules there, or an interface's place in a zone, how many EnsureNetwork
	// would add, remove and keep.
	Added, Removed, Kept int
}

// passageType begins the last part of the comments of rules that open a passage.
const passageType = "passage_"

// PassageTag is how the comments begin of all rules that open passages for a network.
func PassageTag(id string) string { return Tag(id) + ":" + passageType }

// PassageRules returns what other programs have to accept in a chain, ChainForward or
// ChainInput, for what a network's own rules accept there to get through. They may say
// less than those, for what our own rules drop stays dropped.
func PassageRules(s Spec, chain string) []mvm.FirewallRule {
	rules := slices.DeleteFunc(Rules(s), func(r mvm.FirewallRule) bool {
		published := r.RuleType == RulePublishedIn || r.RuleType == RulePublishedOut
		return r.ChainName != chain || r.Target != TargetAccept || published && !s.Published
	})
	for i := range rules {
		tag := PassageTag(s.NetworkID) + rules[i].RuleType
		rules[i].CommentTag = &tag
	}
	return rules
}
