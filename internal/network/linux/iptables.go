package linux

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/run"
)

// iptables is the backend of iptables. Each group has chains of its own, such as
// MVM-FWD-mvm-default; chains that all groups share, such as MVM-FORWARD, lead to
// them, and the first rule of iptables' own chains leads to those. Where a group
// accepts a packet, its chain returns, so that another group may still drop it.
//
// Rules are read by iptables-save and written by iptables-restore, which puts each
// table in place in one transaction and leaves chains that it does not name alone.
type iptables struct {
	fw      *firewall
	run     run.Runner
	flavour string // "-nft" or "-legacy"; "" for what is iptables on this host
}

// program returns the name of a tool of this flavour.
func (x iptables) program(suffix string) string {
	if _, err := run.Look("iptables" + x.flavour + suffix); err != nil && x.flavour == "-nft" {
		return "iptables" + suffix // where there is only one, it has no other name
	}
	return "iptables" + x.flavour + suffix
}

// firewallLock keeps two processes of ours from changing iptables at once: they share
// chains.
const firewallLock = "/run/mvm-firewall.lock"

// builtin are the chains of iptables that lead to ours.
var builtin = map[string]string{
	network.ChainForward: "FORWARD", network.ChainInput: "INPUT",
	network.ChainPostrouting: "POSTROUTING", network.ChainPrerouting: "PREROUTING", network.ChainOutput: "OUTPUT",
}

// ownPrefix begins the names of groups' chains. A name has 28 characters at most.
var ownPrefix = map[string]string{
	network.ChainForward: "MVM-FWD-", network.ChainInput: "MVM-IN-",
	network.ChainPostrouting: "MVM-POST-", network.ChainPrerouting: "MVM-PRE-", network.ChainOutput: "MVM-OUT-",
}

// ownChain returns the name of a group's chain.
func ownChain(chain string, g group) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
	}
	name := g.name
	if len(name) > 15 || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) {
		sum := sha256.Sum256([]byte(name))
		name = "h" + hex.EncodeToString(sum[:])[:14]
	}
	return ownPrefix[chain] + name
}

// title implements backend.
func (iptables) title(g group) string {
	chains := make([]string, 0, len(g.rules))
	for _, c := range usedChains(g) {
		chains = append(chains, ownChain(c, g))
	}
	return "iptables chains " + strings.Join(chains, ", ")
}

// usedChains are the chains that a group has rules for.
func usedChains(g group) []string {
	return slices.DeleteFunc(network.Chains(), func(c string) bool { return len(rulesOf(g, c)) == 0 })
}

func rulesOf(g group, chain string) []mvm.FirewallRule {
	return slices.DeleteFunc(slices.Clone(g.rules), func(r mvm.FirewallRule) bool { return r.ChainName != chain })
}

// present implements backend.
func (x iptables) present(g group) (bool, error) {
	chains, err := x.fw.ipChains()
	if err != nil {
		return false, err
	}
	for _, c := range network.Chains() {
		own, table := ownChain(c, g), network.TableOf(c)
		if slices.ContainsFunc(chains, func(k *nftables.Chain) bool { return k.Name == own && k.Table.Name == table }) {
			return true, nil
		}
	}
	if tables := legacyTables(); len(tables) > 0 && isLegacy() {
		for _, table := range tables {
			_, entries, err := legacyTable(table)
			if err != nil {
				return false, explain(err, "read the rules of iptables-legacy")
			}
			if slices.ContainsFunc(network.Chains(), func(c string) bool { return strings.Contains(string(entries), ownChain(c, g)+"\x00") }) {
				return true, nil
			}
		}
	}
	return false, nil
}

// hasChain says whether an nftables table of IPv4 has a chain. Those of iptables-nft
// are such.
func (f *firewall) hasChain(table, chain string) (bool, error) {
	_, err := f.ListChain(&nftables.Table{Name: table, Family: nftables.TableFamilyIPv4}, chain)
	if err == nil {
		return true, nil
	}
	if isMissing(err) {
		return false, nil
	}
	return false, explain(err, "read nftables chain %s", chain)
}

// read implements backend.
func (x iptables) read(ctx context.Context, g group) (groupState, error) {
	if len(g.rules) == 0 {
		if there, err := x.present(g); err != nil || !there {
			return groupState{right: err == nil}, err
		}
	}
	s, err := x.save(ctx)
	if err != nil {
		return groupState{}, err
	}
	return s.group(g), nil
}

// group tells what is saved of a group.
func (s saved) group(g group) groupState {
	var st groupState
	st.right = true
	tagged, any := false, false
	for _, c := range network.Chains() {
		t, own := s[network.TableOf(c)], ownChain(c, g)
		lines, there := t.rules[own]
		wanted := len(rulesOf(g, c)) > 0
		st.exists = st.exists || there
		for _, l := range lines {
			any = true
			tagged = tagged || strings.HasPrefix(xtParse(l).comment, network.Tag(g.owner.id)+":")
		}
		if there != wanted || wanted && !(t.leads(builtin[c], c) && t.leadsOnce(c, own)) {
			st.right = false
		}
		st.rules = append(st.rules, xtDecode(c, lines, g.owner)...)
	}
	if any && !tagged {
		return groupState{exists: true, foreign: true}
	}
	st.right = st.right && network.InPlace(g.rules, st.rules)
	return st
}

// put implements backend. It reads again under the lock, so was does not matter.
func (x iptables) put(ctx context.Context, g group, _ groupState) error {
	return x.change(ctx, func(s saved) (string, error) {
		if s.group(g).foreign {
			return "", foreign(x.title(g))
		}
		for _, r := range g.rules {
			for _, name := range []string{r.InInterface, r.OutInterface} {
				if strings.HasSuffix(name, "+") {
					return "", mvm.Errorf(mvm.ErrUnsupported, "interface %s cannot be named in a rule of iptables, where + stands for any ending", mvm.Quote(name)).
						WithHint("rename it, or use the other backend: mvm config set settings firewall_backend nftables")
				}
			}
		}
		made, err := x.wouldMake(g)
		return s.put(g, made), err
	})
}

// remove implements backend.
func (x iptables) remove(ctx context.Context, g group) error {
	g.rules = nil
	return x.change(ctx, func(s saved) (string, error) {
		if s.group(g).foreign {
			return "", nil
		}
		return s.put(g, nil), nil
	})
}

// change reads the rules, and writes what plan makes of them, while no other process
// of ours does.
func (x iptables) change(ctx context.Context, plan func(saved) (string, error)) error {
	lock, err := fsx.LockWait(ctx, firewallLock)
	if err != nil {
		return explain(err, "lock the rules of iptables")
	}
	defer lock.Unlock()
	s, err := x.save(ctx)
	if err != nil {
		return err
	}
	script, err := plan(s)
	if err != nil || script == "" {
		return err
	}
	_, err = x.run.Run(ctx, run.Cmd{Name: x.program("-restore"), Args: []string{"--noflush", "-w"}, Stdin: strings.NewReader(script)})
	if err != nil {
		return xtExplain(err, "write rules of iptables")
	}
	if x.flavour != "" {
		return ctx.Err()
	}
	return x.tidy(ctx, s)
}

// save reads all rules of iptables.
func (x iptables) save(ctx context.Context) (saved, error) {
	res, err := x.run.Run(ctx, run.Cmd{Name: x.program("-save")})
	if err != nil {
		return nil, xtExplain(err, "read the rules of iptables")
	}
	return parseSaved(string(res.Stdout)), nil
}

// xtExplain gives an error of a tool its kind and hint.
func xtExplain(err error, what string) error {
	var exit *run.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	switch {
	case strings.Contains(exit.Stderr, "Permission denied"), strings.Contains(exit.Stderr, "must be root"):
		return mvm.Errorf(mvm.ErrPrivilege, "%s: %w", what, err).WithHint("run with sudo")
	case strings.Contains(exit.Stderr, "incompatible"):
		return mvm.Errorf(mvm.ErrConflict, "%s: %w", what, err).
			WithHint("rules that nft put into iptables' tables are in the way; use the other backend: mvm config set settings firewall_backend nftables")
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%s: %w", what, err).WithHint("see 'iptables-save' and 'dmesg', then try again")
}

// isLegacy says whether the host's iptables is the one that does not use nftables.
func isLegacy() bool {
	path, err := run.Look("iptables-restore")
	if err != nil {
		return false
	}
	path, err = filepath.EvalSymlinks(path)
	return err == nil && strings.Contains(filepath.Base(path), "legacy")
}
