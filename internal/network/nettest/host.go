package nettest

import (
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
	return &RealHost{Kernel: ns.Within(k), Namespace: ns}
}

// RealHost is a Host in a namespace.
type RealHost struct {
	network.Kernel
	*Namespace
}

var _ Host = (*RealHost)(nil)

// AddLink implements Host. The device is a bridge, the kind most like ours.
func (h *RealHost) AddLink(name string) { h.Run("ip", "link", "add", name, "type", "bridge") }

// DelLink implements Host.
func (h *RealHost) DelLink(name string) { h.Run("ip", "link", "del", name) }

// SetDown implements Host.
func (h *RealHost) SetDown(name string) { h.Run("ip", "link", "set", name, "down") }

// AddTable implements Host. The table has a chain, as one in use does.
func (h *RealHost) AddTable(name string) {
	h.Run("nft", "add table ip "+name+"; add chain ip "+name+" theirs")
}

// HasTable implements Host.
func (h *RealHost) HasTable(name string) bool {
	return slices.ContainsFunc(strings.Split(h.Run("nft", "list", "tables"), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "table ") && strings.HasSuffix(line, " "+name)
	})
}

// FlushTable implements Host.
func (h *RealHost) FlushTable(name string) { h.Run("nft", "flush", "table", "ip", name) }
