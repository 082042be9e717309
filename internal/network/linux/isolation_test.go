package linux

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// addVM makes a VM's tap, changed as the test wants it, and a guest behind it.
func addVM(t *testing.T, h *nettest.RealHost, s network.Spec, name, ip string, change ...func(*network.TapSpec)) *nettest.Namespace {
	t.Helper()
	tap := nettest.TapOf(name, s, ip)
	for _, c := range change {
		c(&tap)
	}
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	return nettest.VM(t, h.Namespace, tap, s)
}

func isolated(t *network.TapSpec) { t.Isolated = true }

// What guests reach on the host: a ping of the gateway, and of its services those
// that are meant for them.
func TestPacketsToTheHost(t *testing.T) { onBackends(t, packetsToTheHost) }

func packetsToTheHost(t *testing.T, h *nettest.RealHost) {
	nettest.Outside(t, h.Namespace)
	red, blue := nettest.SpecOf("red", "172.27.0.0/24"), nettest.SpecOf("blue", "172.27.1.0/24")
	red.DNS = true
	mustEnsure(t, h, red)
	mustEnsure(t, h, blue)
	if err := h.AllowNoCloud(t.Context(), nettest.NoCloudOf("vm1", red, "172.27.0.2", 8001)); err != nil {
		t.Fatal(err)
	}
	one, two := addVM(t, h, red, "vm1", "172.27.0.2"), addVM(t, h, red, "vm2", "172.27.0.3")
	for _, port := range []string{"22", "53", "8001", "8002"} {
		h.ServePeer("0.0.0.0:" + port)
	}
	for _, c := range []struct {
		what string
		from *nettest.Namespace
		to   string
		ok   bool
	}{
		{"the gateway's DNS", one, "172.27.0.1:53", true},
		{"its NoCloud server", one, "172.27.0.1:8001", true},
		{"another guest's NoCloud server", two, "172.27.0.1:8001", false},
		{"another service in the range of NoCloud ports", one, "172.27.0.1:8002", false},
		{"the host's SSH at the gateway", one, "172.27.0.1:22", false},
		{"the host's SSH at its uplink", one, nettest.HostAddr.String() + ":22", false},
		{"DNS at the host's uplink", one, nettest.HostAddr.String() + ":53", false},
		{"DNS at another network's gateway", one, "172.27.1.1:53", false},
	} {
		want := ""
		if c.ok {
			want = map[*nettest.Namespace]string{one: "172.27.0.2", two: "172.27.0.3"}[c.from]
		}
		wantPeer(t, c.what, c.from, c.to, want)
	}
	if got := one.Run("ping", "-c", "1", "-W", "20", "172.27.0.1"); !strings.Contains(got, "1 received") {
		t.Errorf("the gateway does not answer pings:\n%s", got)
	}
	wantPeer(t, "host to guest", h.Namespace, one.ServePeer("172.27.0.2:80"), "172.27.0.1")

	// The host's loopback is no way in, even where the kernel would let it through.
	h.Run("sysctl", "-qw", "net.ipv4.conf.mvm-red.route_localnet=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.mvm-red.rp_filter=0")
	h.ServePeer("127.0.0.1:7000")
	one.Run("ip", "route", "add", "127.0.0.1", "via", "172.27.0.1", "dev", "eth0", "table", "7")
	one.Run("ip", "rule", "add", "pref", "1", "to", "127.0.0.1", "lookup", "7")
	one.Run("ip", "rule", "add", "pref", "2", "lookup", "local")
	one.Run("ip", "rule", "del", "pref", "0")
	one.Run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
	wantPeer(t, "the host's loopback", one, "127.0.0.1:7000", "")
	h.FlushTable(red.Bridge)
	wantPeer(t, "the host's loopback, held by the guard alone", one, "127.0.0.1:7000", "")
	h.Run("nft", "delete", "table", "netdev", network.TapName("vm1"))
	if got := peerSeen(t, one, "127.0.0.1:7000", patience); got == "" {
		t.Error("the loopback cannot be reached without any rule, so the lines above prove nothing")
	}
}

// Clouds keep the host's credentials at a link-local address.
func TestPacketsToTheMetadataService(t *testing.T) { onBackends(t, packetsToTheMetadataService) }

func packetsToTheMetadataService(t *testing.T, h *nettest.RealHost) {
	out := nettest.Outside(t, h.Namespace)
	out.Run("ip", "address", "add", "169.254.169.254/32", "dev", "lo")
	h.Run("ip", "route", "add", "169.254.169.254", "via", nettest.OutsideAddr.String())
	server := out.ServePeer("169.254.169.254:80")
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	guest := addVM(t, h, red, "vm1", "172.27.0.2")
	wantPeer(t, "host", h.Namespace, server, nettest.HostAddr.String())
	wantPeer(t, "guest", guest, server, "")
	wantPeer(t, "guest, another service outside", guest, out.ServePeer(nettest.OutsideAddr.String()+":80"), nettest.HostAddr.String())
	h.FlushTable(red.Bridge)
	h.Run("nft", "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; add rule ip nat post oifname "+nettest.Uplink+" masquerade")
	wantPeer(t, "guest, without our rules", guest, server, nettest.HostAddr.String())
}

// An isolated VM has the host and the outside, and no neighbour has it: neither by
// the bridge nor, for a hostile guest, by the gateway.
func TestPacketsIsolatedVM(t *testing.T) { onBackends(t, packetsIsolatedVM) }

func packetsIsolatedVM(t *testing.T, h *nettest.RealHost) {
	out := nettest.Outside(t, h.Namespace)
	outside := out.ServePeer(nettest.OutsideAddr.String() + ":80")
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	apart, apart2, open, open2 := addVM(t, h, red, "apart", "172.27.0.2", isolated), addVM(t, h, red, "apart2", "172.27.0.3", isolated),
		addVM(t, h, red, "open", "172.27.0.4"), addVM(t, h, red, "open2", "172.27.0.5")
	servers := map[string]string{}
	for ip, vm := range map[string]*nettest.Namespace{"172.27.0.2": apart, "172.27.0.3": apart2, "172.27.0.4": open, "172.27.0.5": open2} {
		servers[ip] = vm.ServePeer(ip + ":80")
	}
	check := func(how string) {
		t.Helper()
		wantPeer(t, how+": open to open", open, servers["172.27.0.5"], "172.27.0.4")
		wantPeer(t, how+": open to isolated", open, servers["172.27.0.2"], "")
		wantPeer(t, how+": isolated to open", apart, servers["172.27.0.4"], "")
		wantPeer(t, how+": isolated to isolated", apart, servers["172.27.0.3"], "")
		wantPeer(t, how+": isolated to outside", apart, outside, nettest.HostAddr.String())
		wantPeer(t, how+": host to isolated", h.Namespace, servers["172.27.0.2"], "172.27.0.1")
	}
	for _, value := range bridgeNFValues() {
		if value != "" {
			h.Run("sysctl", "-qw", bridgeNF+"="+value)
		}
		check("by the bridge, " + bridgeNF + "=" + value)
	}
	// As hostile guests do: neighbours are said to be behind the gateway.
	for _, vm := range []*nettest.Namespace{apart, apart2, open} {
		vm.Run("ip", "route", "add", "172.27.0.0/30", "via", "172.27.0.1", "onlink", "dev", "eth0")
		vm.Run("ip", "route", "add", "172.27.0.4/32", "via", "172.27.0.1", "onlink", "dev", "eth0")
	}
	check("by the gateway")
	wantNoDatagram(t, open, apart, "172.27.0.2", h)

	// Isolation is taken back with the next start.
	tap := nettest.TapOf("apart", red, "172.27.0.2")
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	wantPeer(t, "open to one that is not isolated any more", open, servers["172.27.0.2"], "172.27.0.4")
}

// wantNoDatagram sees that not even a packet that wants no answer gets there: the
// host's own, sent after it, does.
func wantNoDatagram(t *testing.T, from, to *nettest.Namespace, ip string, h *nettest.RealHost) {
	t.Helper()
	pc := listenUDP(t, to, ip+":9")
	send := func(ns *nettest.Namespace, text string) {
		c, err := ns.Dial(t.Context(), "udp4", ip+":9")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		send(from, "neighbour")
		send(h.Namespace, "host")
		_ = pc.SetReadDeadline(time.Now().Add(silence))
		n, _, err := pc.ReadFrom(buf)
		if err == nil {
			if string(buf[:n]) != "host" {
				t.Errorf("an isolated VM received %q", buf[:n])
			}
			return
		}
	}
	t.Error("no datagram of the host's arrived either")
}

func listenUDP(t *testing.T, ns *nettest.Namespace, addr string) net.PacketConn {
	t.Helper()
	var pc net.PacketConn
	var err error
	ns.Do(func() { pc, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	return pc
}
