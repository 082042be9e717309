package linux

import (
	"context"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

func TestRealKernel(t *testing.T) {
	nettest.Suite(t, func(t *testing.T) nettest.Host { return nettest.NewHost(t, New()) })
}

func TestRealKernelWithIPTables(t *testing.T) {
	nettest.Suite(t, func(t *testing.T) nettest.Host { return newHost(t, network.IPTables) })
}

// newHost returns a host whose rules stand in a backend.
func newHost(t testing.TB, b network.Backend) *nettest.RealHost {
	t.Helper()
	h := nettest.NewHost(t, network.With(New(), func(context.Context) (network.Backend, error) { return b, nil }))
	if b == network.IPTables {
		h.Run("iptables-save", "--version")
		h.Tables = xtChains{h.Namespace}
	}
	return h
}

// onBackends runs a test on a host of its own for each backend.
func onBackends(t *testing.T, test func(t *testing.T, h *nettest.RealHost)) {
	for _, b := range []network.Backend{network.NFTables, network.IPTables} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			test(t, newHost(t, b))
		})
	}
}

// xtChains are nettest.Tables where the rules are iptables': the chains of one group.
type xtChains struct{ ns *nettest.Namespace }

// chains are all that a group of a name could have.
func (x xtChains) chains(name string) map[string]string {
	found := map[string]string{}
	saved := x.ns.Run("iptables-save")
	for _, c := range network.Chains() {
		if own := ownChain(c, group{name: name}); strings.Contains(saved, ":"+own+" ") {
			found[own] = network.TableOf(c)
		}
	}
	return found
}

func (x xtChains) AddTable(name string) {
	own := ownChain(network.ChainInput, group{name: name})
	x.ns.Run("iptables", "-N", own)
	x.ns.Run("iptables", "-A", own, "-s", "10.1.2.3", "-j", "DROP")
}

func (x xtChains) HasTable(name string) bool {
	return len(x.chains(name)) > 0 || x.ns.HasNFTable(name)
}

func (x xtChains) FlushTable(name string) {
	for chain, table := range x.chains(name) {
		x.ns.Run("iptables", "-t", table, "-F", chain)
	}
	if strings.Contains(x.ns.Run("nft", "list", "tables"), "table ip "+name+"\n") { // what is nftables' with either
		x.ns.Run("nft", "flush", "table", "ip", name)
	}
}
