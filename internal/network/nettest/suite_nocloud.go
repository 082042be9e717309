package nettest

import (
	"net/netip"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// NoCloudOf returns the spec of a VM's NoCloud server for tests.
func NoCloudOf(vm string, s network.Spec, ip string, port int) network.NoCloudSpec {
	return network.NoCloudSpec{VMID: vm, Bridge: s.Bridge, Gateway: s.Gateway, IP: netip.MustParseAddr(ip), Port: port}
}

func noCloud(t *testing.T, h Host) {
	ensure(t, h, red)
	one, two := NoCloudOf("vm1", red, "172.27.0.2", 8000), NoCloudOf("vm2", red, "172.27.0.3", 8001)
	for _, n := range []network.NoCloudSpec{one, two, one} {
		if err := h.AllowNoCloud(t.Context(), n); err != nil {
			t.Fatalf("AllowNoCloud(%s): %v", n.VMID, err)
		}
	}
	if changes := ensure(t, h, red); len(changes) > 0 {
		t.Errorf("the network is not right beside them: %v", changes)
	}
	for range 2 {
		if err := h.RemoveNoCloud(t.Context(), network.NoCloudSpec{VMID: one.VMID}); err != nil {
			t.Fatalf("RemoveNoCloud: %v", err)
		}
		if h.HasTable(one.Table()) || !h.HasTable(two.Table()) {
			t.Errorf("the tables are there: %v, %v", h.HasTable(one.Table()), h.HasTable(two.Table()))
		}
	}
	h.AddTable(one.Table())
	wantKind(t, h.AllowNoCloud(t.Context(), one), mvm.ErrExists)
	if err := h.RemoveNoCloud(t.Context(), one); err != nil || !h.HasTable(one.Table()) {
		t.Errorf("somebody else's table is there: %v, %v", h.HasTable(one.Table()), err)
	}
	wantActive(t, h, red)
	for _, bad := range []network.NoCloudSpec{{}, {VMID: `a"b`}, NoCloudOf("vm1", red, "172.27.0.2", 0), NoCloudOf("", red, "172.27.0.2", 1)} {
		wantKind(t, h.AllowNoCloud(t.Context(), bad), mvm.ErrInvalid)
	}
	wantKind(t, h.RemoveNoCloud(t.Context(), network.NoCloudSpec{}), mvm.ErrInvalid)
}
