package linux

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/testenv"
)

// What is ours on a host is found with either backend, and what others have made is
// not taken for ours.
func TestOwnedAndTaken(t *testing.T) {
	testenv.Require(t, "root", "netns", "nft", "ip")
	for _, backend := range []network.Backend{network.NFTables, network.IPTables} {
		t.Run(string(backend), func(t *testing.T) {
			k := New()
			h := nettest.NewHost(t, k)
			if backend == network.IPTables {
				h.Run("iptables-save")
			}
			h.AddLink("docker0")
			h.AddTable("theirs")
			s := nettest.SpecOf("red", "172.27.0.0/24")
			s.Backend, s.Published = backend, true
			tap := nettest.TapOf("web", s, "172.27.0.2")
			tap.Backend = backend
			one := netip.MustParseAddr("127.0.0.1")
			tap.Publish = []network.Publish{{Protocol: "tcp", HostPort: 8080, GuestPort: 80}, {Protocol: "udp", HostAddr: one, HostPort: 5353, GuestPort: 53}}
			if _, err := h.EnsureNetwork(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if err := h.AddTap(t.Context(), tap); err != nil {
				t.Fatal(err)
			}
			var owned []network.Owned
			var taken []network.Taken
			var err1, err2 error
			h.Do(func() { owned, err1 = k.Owned(t.Context()); taken, err2 = k.Taken(t.Context()) })
			if err1 != nil || len(owned) != 2 || !slices.Contains(owned, network.Owned{Name: s.Bridge, ID: s.NetworkID, Bridge: true}) ||
				!slices.Contains(owned, network.Owned{Name: tap.Name, ID: tap.VMID}) {
				t.Errorf("owned are %v, %v", owned, err1)
			}
			want := []network.Taken{
				{VMID: tap.VMID, Publish: network.Publish{Protocol: "tcp", HostPort: 8080}},
				{VMID: tap.VMID, Publish: network.Publish{Protocol: "udp", HostAddr: one, HostPort: 5353}},
			}
			if err2 != nil || len(taken) != 2 || !slices.Contains(taken, want[0]) || !slices.Contains(taken, want[1]) {
				t.Errorf("taken are %v, %v", taken, err2)
			}
		})
	}
}
