package linux

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// peerSeen connects from a namespace and returns the source address that the
// server saw, "" when nothing came through.
func peerSeen(t *testing.T, from *nettest.Namespace, addr string, wait time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	c, err := from.Dial(ctx, "tcp4", addr)
	if err != nil {
		return ""
	}
	defer func() { _ = c.Close() }()
	seen, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("the server at %s did not answer: %v", addr, err)
	}
	return string(seen)
}

// Reaching gets all the time that a busy machine may need. That something does
// not arrive can only be seen by waiting; each such wait stands beside a control
// that does arrive.
const (
	patience = 20 * time.Second
	silence  = 300 * time.Millisecond
)

func wantPeer(t *testing.T, what string, from *nettest.Namespace, addr, want string) {
	t.Helper()
	wait := patience
	if want == "" {
		wait = silence
	}
	if got := peerSeen(t, from, addr, wait); got != want {
		t.Errorf("%s: the server saw %q, want %q", what, got, want)
	}
}

func mustEnsure(t *testing.T, k network.Kernel, s network.Spec) {
	t.Helper()
	if _, err := k.EnsureNetwork(t.Context(), s); err != nil {
		t.Fatalf("EnsureNetwork(%s): %v", s.Name, err)
	}
}

func TestPacketsNAT(t *testing.T) { onBackends(t, packetsNAT) }

func packetsNAT(t *testing.T, h *nettest.RealHost) {
	out := nettest.Outside(t, h.Namespace)
	server := out.ServePeer(netip.AddrPortFrom(nettest.OutsideAddr, 8080).String())
	red := nettest.SpecOf("red", "172.27.0.0/24")
	red.NAT = false
	mustEnsure(t, h, red)
	guest := nettest.Guest(t, h.Namespace, "g1", red, netip.MustParseAddr("172.27.0.2"))

	h.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")
	wantPeer(t, "without NAT", guest, server, "")
	red.NAT = true
	mustEnsure(t, h, red)
	wantPeer(t, "with NAT", guest, server, nettest.HostAddr.String())
	red.NATGateways = []string{"elsewhere0"}
	mustEnsure(t, h, red)
	wantPeer(t, "with NAT by another uplink only", guest, server, "")
	red.NATGateways = []string{nettest.Uplink, "elsewhere0"}
	mustEnsure(t, h, red)
	wantPeer(t, "with NAT by the named uplink", guest, server, nettest.HostAddr.String())

	guestServer := guest.ServePeer("172.27.0.2:80")
	wantPeer(t, "host to guest", h.Namespace, guestServer, red.Gateway.String())
	out.Run("ip", "route", "add", red.Subnet.String(), "via", nettest.HostAddr.String())
	wantPeer(t, "outside to guest, with a route", out, guestServer, "")
}

// Without named uplinks guests leave by whatever the host's default route says, from
// the moment that it changes: no rule names an interface.
func TestPacketsFollowTheDefaultRoute(t *testing.T) { onBackends(t, packetsFollowTheDefaultRoute) }

func packetsFollowTheDefaultRoute(t *testing.T, h *nettest.RealHost) {
	first := nettest.Outside(t, h.Namespace)
	second := nettest.NewNamespace(t)
	nettest.Join(h.Namespace, "wlan0", netip.MustParsePrefix("203.0.113.1/24"), second, "eth0", netip.MustParsePrefix("203.0.113.2/24"))
	for _, out := range []*nettest.Namespace{first, second} { // both reach one address
		out.Run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
		out.ServePeer("192.0.2.1:80")
	}
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	guest := addVM(t, h, red, "vm1", "172.27.0.2")
	wantPeer(t, "by the first uplink", guest, "192.0.2.1:80", nettest.HostAddr.String())
	h.Run("ip", "route", "replace", "default", "via", "203.0.113.2")
	wantPeer(t, "by the second uplink", guest, "192.0.2.1:80", "203.0.113.1")
	if changes, err := h.EnsureNetwork(t.Context(), red); err != nil || len(changes) > 0 {
		t.Errorf("the change of route changed %v, %v", changes, err)
	}
}

func TestPacketsBetweenGuests(t *testing.T) { onBackends(t, packetsBetweenGuests) }

func packetsBetweenGuests(t *testing.T, h *nettest.RealHost) {
	red, blue := nettest.SpecOf("red", "172.27.0.0/24"), nettest.SpecOf("blue", "172.27.1.0/24")
	mustEnsure(t, h, red)
	mustEnsure(t, h, blue)
	red2 := nettest.Guest(t, h.Namespace, "r2", red, netip.MustParseAddr("172.27.0.2"))
	red3 := nettest.Guest(t, h.Namespace, "r3", red, netip.MustParseAddr("172.27.0.3"))
	blue2 := nettest.Guest(t, h.Namespace, "b2", blue, netip.MustParseAddr("172.27.1.2"))
	redServer, blueServer := red2.ServePeer("172.27.0.2:80"), blue2.ServePeer("172.27.1.2:80")

	for _, value := range bridgeNFValues() {
		if value != "" {
			h.Run("sysctl", "-qw", bridgeNF+"="+value)
		}
		wantPeer(t, "neighbour on one network, "+bridgeNF+"="+value, red3, redServer, "172.27.0.3")
	}
	wantPeer(t, "host to blue", h.Namespace, blueServer, blue.Gateway.String())
	wantPeer(t, "red to blue", red3, blueServer, "")
	wantPeer(t, "blue to red", blue2, redServer, "")

	// Re-made in another order, the networks are as apart.
	if err := h.RemoveNetwork(t.Context(), red); err != nil {
		t.Fatal(err)
	}
	mustEnsure(t, h, red)
	for _, port := range []string{"r2", "r3"} {
		h.Run("ip", "link", "set", port, "master", red.Bridge)
	}
	wantPeer(t, "neighbour on the re-made network", red3, redServer, "172.27.0.3")
	wantPeer(t, "red to blue, re-made", red3, blueServer, "")
	wantPeer(t, "blue to red, re-made", blue2, redServer, "")
	if ips := h.Run("ip", "-6", "address", "show", "dev", red.Bridge); ips != "" {
		t.Errorf("the bridge has IPv6 addresses: %s", ips)
	}
}

// An established connection goes on while the network is ensured again and its
// rules are rewritten.
func TestPacketsLiveConnection(t *testing.T) { onBackends(t, packetsLiveConnection) }

func packetsLiveConnection(t *testing.T, h *nettest.RealHost) {
	out := nettest.Outside(t, h.Namespace)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	guest := nettest.Guest(t, h.Namespace, "g1", red, netip.MustParseAddr("172.27.0.2"))
	l, err := out.Listen("tcp4", netip.AddrPortFrom(nettest.OutsideAddr, 8080).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			accepted <- c
		}
		close(accepted)
	}()
	c, err := guest.Dial(t.Context(), "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	far := <-accepted
	defer func() { _ = far.Close() }()
	red.NATGateways = []string{nettest.Uplink}
	mustEnsure(t, h, red)
	deadline := time.Now().Add(patience)
	_ = c.SetDeadline(deadline)
	_ = far.SetDeadline(deadline)
	for _, way := range [][2]net.Conn{{c, far}, {far, c}} {
		if _, err := way[0].Write([]byte("still")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(way[1], buf); err != nil || string(buf) != "still" {
			t.Errorf("over rewritten rules came %q, %v", buf, err)
		}
	}
}
