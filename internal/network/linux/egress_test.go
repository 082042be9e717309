package linux

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// Addresses outside: OutsideAddr is listed by its network, the second opened by name,
// the third neither.
const (
	listed  = "198.51.100.2:80"
	named   = "198.51.100.3:80"
	neither = "198.51.100.4:80"
)

// outsideOf is an outside with servers at the three addresses.
func outsideOf(t *testing.T, h *nettest.RealHost) *nettest.Namespace {
	t.Helper()
	out := nettest.Outside(t, h.Namespace)
	for _, a := range []string{"198.51.100.3/24", "198.51.100.4/24"} {
		out.Run("ip", "address", "add", a, "dev", "eth0")
	}
	for _, a := range []string{listed, named, neither} {
		out.ServePeer(a)
	}
	return out
}

func egressTo(cidrs ...string) *network.Egress {
	e := &network.Egress{Names: true}
	for _, c := range cidrs {
		e.Networks = append(e.Networks, netip.MustParsePrefix(c))
	}
	return e
}

func TestPacketsEgress(t *testing.T) {
	h := nettest.NewHost(t, New())
	out := outsideOf(t, h)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	red.Published = true
	mustEnsure(t, h, red)
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	tap.Publish = []network.Publish{{Protocol: "tcp", HostPort: 8080, GuestPort: 80}}
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	one, two := nettest.VM(t, h.Namespace, tap, red), addVM(t, h, red, "vm2", "172.27.0.3")
	one.ServePeer("172.27.0.2:80")
	two.ServePeer("172.27.0.3:80")
	uplink := nettest.HostAddr.String()
	passes := func(what string, want map[string]bool) {
		t.Helper()
		for _, to := range []string{listed, named, neither} {
			seen := ""
			if want[to] {
				seen = uplink
			}
			wantPeer(t, what+" to "+to, one, to, seen)
		}
		for _, value := range bridgeNFValues() { // whatever it may reach outside
			if value != "" {
				h.Run("sysctl", "-qw", bridgeNF+"="+value)
			}
			wantPeer(t, what+" to a neighbour", one, "172.27.0.3:80", "172.27.0.2")
			wantPeer(t, what+" from a neighbour", two, "172.27.0.2:80", "172.27.0.3")
		}
		wantPeer(t, what+" from outside to a published port", out, uplink+":8080", nettest.OutsideAddr.String())
	}
	set := func(e *network.Egress) {
		t.Helper()
		tap.Egress = e
		if err := h.AddTap(t.Context(), tap); err != nil {
			t.Fatal(err)
		}
	}
	passes("allowed", map[string]bool{listed: true, named: true, neither: true})
	set(&network.Egress{})
	passes("denied", nil)
	set(egressTo("198.51.100.2/32", "203.0.113.0/24"))
	passes("by a list", map[string]bool{listed: true})
	open := func(d time.Duration) {
		t.Helper()
		if err := h.OpenEgress(t.Context(), tap, []network.OpenAddr{{Addr: netip.MustParseAddr("198.51.100.3"), For: d}}); err != nil {
			t.Fatal(err)
		}
	}
	open(time.Minute)
	passes("by a list and a name", map[string]bool{listed: true, named: true})
	if two := peerSeen(t, two, neither, patience); two != uplink {
		t.Errorf("another VM's list holds this one: it was seen as %q", two)
	}
	// A time can be set anew, and ends.
	open(50 * time.Millisecond)
	for end := time.Now().Add(patience); peerSeen(t, one, named, silence) != ""; {
		if time.Now().After(end) {
			t.Fatal("an address stays open")
		}
	}
	passes("after its time", map[string]bool{listed: true})
	// A VM that is made anew is held from its first packet.
	if err := h.RemoveTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	tap.Name = network.TapName("vm1")
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	one = nettest.VM(t, h.Namespace, tap, red)
	one.ServePeer("172.27.0.2:80")
	passes("started again", map[string]bool{listed: true})
	set(nil)
	passes("allowed again", map[string]bool{listed: true, named: true, neither: true})
}

func TestDenials(t *testing.T) {
	h := nettest.NewHost(t, New())
	outsideOf(t, h)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	guest := addVM(t, h, red, "vm1", "172.27.0.2", func(s *network.TapSpec) { s.Egress = egressTo("198.51.100.2/32") })
	tap := network.TapSpec{Name: network.TapName("vm1"), VMID: "vm1"}
	began := time.Now().Add(-time.Second)
	wantPeer(t, "what is listed", guest, listed, nettest.HostAddr.String())
	wantPeer(t, "what is not", guest, neither, "")
	udp := listenUDP(t, guest, "172.27.0.2:0")
	for range 3 {
		if _, err := udp.WriteTo([]byte("four"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.9:5353"))); err != nil {
			t.Fatal(err)
		}
	}
	icmp := pinger(t, guest)
	if _, err := icmp.WriteTo([]byte{8, 0, 0xf7, 0xfe, 0, 1, 0, 0}, &net.IPAddr{IP: net.IPv4(203, 0, 113, 8)}); err != nil {
		t.Fatal(err)
	}
	var d network.Denials
	noted := func() (packets uint64) {
		for _, to := range d.To {
			packets += to.Packets
		}
		return packets
	}
	for end := time.Now().Add(patience); noted() < 1+3+1 && time.Now().Before(end); { // a tap takes its time
		var err error
		if d, err = h.Denials(t.Context(), tap); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]network.Denial{}
	for _, to := range d.To {
		seen[netip.AddrPortFrom(to.Addr, to.Port).String()] = to
		if to.Last.Before(began) || to.Last.After(time.Now().Add(time.Second)) {
			t.Errorf("sent to %s at %s, which is not now", to.Addr, to.Last)
		}
	}
	for addr, protocol := range map[string]uint8{neither: unix.IPPROTO_TCP, "203.0.113.9:5353": unix.IPPROTO_UDP, "203.0.113.8:0": unix.IPPROTO_ICMP} {
		if seen[addr].Protocol != protocol || seen[addr].Packets == 0 {
			t.Errorf("denied to %s: %+v", addr, seen[addr])
		}
	}
	if udp := seen["203.0.113.9:5353"]; len(d.To) != 3 || udp.Packets != 3 || udp.Bytes != 3*(20+8+4) || d.Packets < noted() || d.Bytes == 0 {
		t.Errorf("denied was %+v", d)
	}
	// More destinations than are noted are counted all the same, and dropped.
	for i := range network.MaxDenied + 50 {
		_, _ = udp.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 9)))
	}
	for end := time.Now().Add(patience); d.Packets < network.MaxDenied/2 && time.Now().Before(end); {
		d, _ = h.Denials(t.Context(), tap)
	}
	if d.Packets < network.MaxDenied/2 || len(d.To) > network.MaxDenied {
		t.Errorf("%d packets to %d destinations were noted", d.Packets, len(d.To))
	}
	wantPeer(t, "what is not, with a full list", guest, neither, "")
}

// pinger is a raw socket of ICMP.
func pinger(t *testing.T, ns *nettest.Namespace) net.PacketConn {
	t.Helper()
	var pc net.PacketConn
	var err error
	ns.Do(func() { pc, err = net.ListenPacket("ip4:icmp", "0.0.0.0") }) //nolint:noctx // at once
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	return pc
}

// A connection goes on while the rules are looked at again, and ends when its
// destination is not listed any more.
func TestPacketsEgressOfAConnection(t *testing.T) {
	h := nettest.NewHost(t, New())
	out := nettest.Outside(t, h.Namespace)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	tap.Egress = egressTo()
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	guest := nettest.VM(t, h.Namespace, tap, red)
	l, err := out.Listen("tcp4", listed)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	open := []network.OpenAddr{{Addr: nettest.OutsideAddr, For: time.Minute}}
	if err := h.OpenEgress(t.Context(), tap, open); err != nil {
		t.Fatal(err)
	}
	near, err := guest.Dial(t.Context(), "tcp4", listed)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = near.Close() }()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	arrives := func(what string, want bool) {
		t.Helper()
		wait := patience
		if !want {
			wait = silence
		}
		_, _ = near.Write([]byte("."))
		_ = far.SetReadDeadline(time.Now().Add(wait))
		_, err := io.ReadFull(far, make([]byte, 1))
		if (err == nil) != want || !want && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
	}
	arrives("at first", true)
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	arrives("after the rules were looked at", true)
	tap.Egress = egressTo("203.0.113.0/24")
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	arrives("when its destination is not open any more", false)
	if err := h.OpenEgress(t.Context(), tap, open); err != nil {
		t.Fatal(err)
	}
	_ = far.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Errorf("when it is again: %v", err)
	}
}

func TestPacketsLimited(t *testing.T) {
	h := nettest.NewHost(t, New())
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	one, two := nettest.VM(t, h.Namespace, tap, red), addVM(t, h, red, "vm2", "172.27.0.3")
	wantPeer(t, "a neighbour", one, two.ServePeer("172.27.0.3:80"), "172.27.0.2")
	const packets, size = 900, 1000
	// arrive says how many of so many packets arrive, sent as fast as it goes.
	arrive := func(from, to *nettest.Namespace, src, dst string) int {
		t.Helper()
		sink, source := listenUDP(t, to, dst+":0"), listenUDP(t, from, src+":0")
		for range packets {
			if _, err := source.WriteTo(make([]byte, size), sink.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		_ = sink.SetReadDeadline(time.Now().Add(silence))
		n := 0
		for buf := make([]byte, 2*size); ; n++ {
			if _, _, err := sink.ReadFrom(buf); err != nil {
				return n
			}
		}
	}
	for name, l := range map[string]network.Limit{
		"nothing": {},
		"bytes":   {BytesPerSec: 20_000}, // of which what a second lets pass, or the largest packet, may come at once
		"packets": {PacketsPerSec: 50},
	} {
		tap.Limit = l
		if err := h.AddTap(t.Context(), tap); err != nil {
			t.Fatal(err)
		}
		up, down := arrive(one, two, "172.27.0.2", "172.27.0.3"), arrive(two, one, "172.27.0.3", "172.27.0.2")
		if up == 0 || down == 0 || name != "nothing" && (up > packets/2 || down > packets/2) {
			t.Errorf("with a limit of %s %d and %d of %d packets arrive", name, up, down, packets)
		}
		want := map[string][2]bool{"nothing": {}, "bytes": {true, false}, "packets": {true, true}}[name]
		rules := h.Run("nft", "list", "table", "netdev", tap.Name)
		guard, out, _ := strings.Cut(rules, limitChain)
		if got := [2]bool{dropsOver(guard), dropsOver(out)}; got != want {
			t.Errorf("with a limit of %s the rules have dropped in and out: %v, want %v:\n%s", name, got, want, rules)
		}
		stats := h.Run("tc", "-s", "qdisc", "show", "dev", tap.Name)
		if shaped := strings.Contains(stats, "qdisc tbf") && !strings.Contains(stats, "overlimits 0 "); shaped != (name == "bytes") {
			t.Errorf("with a limit of %s the shaper says:\n%s", name, stats)
		}
	}
	tap.Limit = network.Limit{}
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	if stats := h.Run("tc", "qdisc", "show", "dev", tap.Name); strings.Contains(stats, "tbf") {
		t.Errorf("the shaper is still there:\n%s", stats)
	}
}

// dropsOver says whether a rule with a limit has dropped something.
func dropsOver(rules string) bool {
	for line := range strings.Lines(rules) {
		if strings.Contains(line, "limit rate over") && !strings.Contains(line, "counter packets 0 ") {
			return true
		}
	}
	return false
}

// The kernel may list an element twice, which is one denial all the same.
func TestDistinct(t *testing.T) {
	element := func(key string) nftables.SetElement { return nftables.SetElement{Key: []byte(key)} }
	keys := ""
	for _, e := range distinct([]nftables.SetElement{element("b"), element("c"), element("b"), element("a"), element("c")}) {
		keys += string(e.Key)
	}
	if keys != "abc" {
		t.Errorf("%q", keys)
	}
}
