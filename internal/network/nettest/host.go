package nettest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/network"
)

// NewHost returns a real host in a namespace of its own: the kernel k, and ip
// and nft for what other programs do. It skips where these are missing.
func NewHost(t testing.TB, k network.Kernel) *RealHost {
	t.Helper()
	ns := NewNamespace(t)
	ns.Run("nft", "--version")
	ns.Run("ip", "-V")
	return &RealHost{Kernel: ns.Within(k), Bare: k, Namespace: ns, Tables: nftTables{ns}}
}

// RealHost is a Host in a namespace.
type RealHost struct {
	network.Kernel
	*Namespace
	Tables
	Bare network.Kernel // the kernel, for the calling thread's namespace
}

// Tables is what other programs do to the rules of a host.
type Tables interface {
	AddTable(name string)
	HasTable(name string) bool
	FlushTable(name string)
}

var _ Host = (*RealHost)(nil)

// AddLink implements Host. The device is a bridge, the kind most like ours.
func (h *RealHost) AddLink(name string) { h.Run("ip", "link", "add", name, "type", "bridge") }

// AddPorts implements Host.
func (h *RealHost) AddPorts(bridge string, n int) {
	var b strings.Builder
	for i := 0; i < n; i += 2 { // both ends of a cable
		fmt.Fprintf(&b, "link add name p%d master %s type veth peer name q%d\n", i, bridge, i)
		if i+1 < n {
			fmt.Fprintf(&b, "link set q%d master %s\n", i, bridge)
		}
	}
	batch := filepath.Join(h.t.TempDir(), "batch")
	if err := os.WriteFile(batch, []byte(b.String()), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.Run("ip", "-batch", batch)
}

// DelLink implements Host.
func (h *RealHost) DelLink(name string) { h.Run("ip", "link", "del", name) }

// SetDown implements Host.
func (h *RealHost) SetDown(name string) { h.Run("ip", "link", "set", name, "down") }

// nftTables are Tables where the rules are nftables'.
type nftTables struct{ ns *Namespace }

// AddTable implements Host. The table has a chain, as one in use does.
func (n nftTables) AddTable(name string) {
	n.ns.Run("nft", "add table ip "+name+"; add chain ip "+name+" theirs")
}

// HasTable implements Host.
func (n nftTables) HasTable(name string) bool { return n.ns.HasNFTable(name) }

// FlushTable implements Host.
func (n nftTables) FlushTable(name string) { n.ns.Run("nft", "flush", "table", "ip", name) }

// HasNFTable says whether an nftables table of any family has a name.
func (ns *Namespace) HasNFTable(name string) bool {
	return slices.ContainsFunc(strings.Split(ns.Run("nft", "list", "tables"), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "table ") && strings.HasSuffix(line, " "+name)
	})
}
