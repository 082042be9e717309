package network

import (
	"slices"

	"github.com/mvmctl/mvm"
)

// RuleDiff is how desired and observed rules differ.
type RuleDiff struct {
	Added   []mvm.FirewallRule // desired, not there
	Removed []mvm.FirewallRule // there, not desired
	Kept    []mvm.FirewallRule // both; as observed
}

// Diff compares rules by what they do and by their comment, whatever their
// order, ids and times. A rule that is there twice is wanted once.
func Diff(desired, observed []mvm.FirewallRule) RuleDiff {
	var d RuleDiff
	left := slices.Clone(observed)
	for _, want := range desired {
		i := slices.IndexFunc(left, func(r mvm.FirewallRule) bool { return Same(r, want) })
		if i < 0 {
			d.Added = append(d.Added, want)
			continue
		}
		d.Kept = append(d.Kept, left[i])
		left = slices.Delete(left, i, i+1)
	}
	d.Removed = left
	if len(left) == 0 {
		d.Removed = nil
	}
	return d
}

// InPlace says whether the observed rules are exactly the desired ones, and
// within each chain in the desired order.
func InPlace(desired, observed []mvm.FirewallRule) bool {
	if len(desired) != len(observed) {
		return false
	}
	for _, chain := range Chains() {
		if !slices.Equal(keysIn(chain, desired), keysIn(chain, observed)) {
			return false
		}
	}
	return len(Diff(desired, observed).Added) == 0
}

// Same says whether two rules do the same for the same owner, whatever their ids and
// times and whichever backend they are in.
func Same(a, b mvm.FirewallRule) bool { return ruleKey(a) == ruleKey(b) }

func keysIn(chain string, rules []mvm.FirewallRule) []key {
	var keys []key
	for _, r := range rules {
		if r.ChainName == chain {
			keys = append(keys, ruleKey(r))
		}
	}
	return keys
}

// key is all that makes two rules the same.
type key struct {
	table, chain, kind, protocol, src, dst, in, out, target, tag string
	sport, dport                                                 int
}

func ruleKey(r mvm.FirewallRule) key {
	k := key{
		r.TableName, r.ChainName, r.RuleType, r.Protocol, r.Source, r.Destination,
		r.InInterface, r.OutInterface, r.Target, "", r.SPort, r.DPort,
	}
	if r.CommentTag != nil {
		k.tag = *r.CommentTag
	}
	return k
}
