package linux

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

func publish(ports ...network.Publish) func(*network.TapSpec) {
	return func(t *network.TapSpec) { t.Publish = ports }
}

// Published ports lead to the guest from everywhere, and only these.
func TestPacketsPublishedPort(t *testing.T) {
	for _, c := range []struct {
		name     string
		nat      bool
		uplinks  []string
		isolated bool
	}{{"with NAT", true, nil, false}, {"by another uplink", true, []string{"elsewhere0"}, false}, {"without NAT", false, nil, false}, {"isolated", true, nil, true}} {
		test := func(t *testing.T, h *nettest.RealHost) {
			out := nettest.Outside(t, h.Namespace)
			red, blue := nettest.SpecOf("red", "172.27.0.0/24"), nettest.SpecOf("blue", "172.27.1.0/24")
			red.NAT, red.NATGateways, red.Published, red.Loopback = c.nat, c.uplinks, true, true
			mustEnsure(t, h, red)
			mustEnsure(t, h, blue)
			web := addVM(t, h, red, "web", "172.27.0.2", publish(network.Publish{Protocol: "tcp", HostPort: 8080, GuestPort: 80}),
				func(s *network.TapSpec) { s.Isolated = c.isolated })
			neighbour, other := addVM(t, h, red, "neighbour", "172.27.0.3"), addVM(t, h, blue, "other", "172.27.1.2")
			web.ServePeer("172.27.0.2:80")
			web.ServePeer("172.27.0.2:81")
			uplink, gateway := nettest.HostAddr.String(), red.Gateway.String()

			for _, value := range bridgeNFValues() {
				if value != "" {
					h.Run("sysctl", "-qw", bridgeNF+"="+value)
				}
				wantPeer(t, "from outside", out, uplink+":8080", nettest.OutsideAddr.String())
				wantPeer(t, "from the host, by its uplink", h.Namespace, uplink+":8080", uplink)
				wantPeer(t, "from the host, by its loopback", h.Namespace, "127.0.0.1:8080", gateway)
				wantPeer(t, "from the host, by the gateway", h.Namespace, gateway+":8080", gateway)
				near := gateway
				if c.isolated {
					near = "" // however it is tried
				} else {
					wantPeer(t, "from the guest itself", web, uplink+":8080", gateway)
				}
				wantPeer(t, "from a neighbour, by the uplink", neighbour, uplink+":8080", near)
				wantPeer(t, "from a neighbour, by the gateway", neighbour, gateway+":8080", near)
				wantPeer(t, "from another network", other, uplink+":8080", gateway)
			}
			for _, port := range []string{"80", "81", "8081"} {
				wantPeer(t, "from outside, port "+port, out, uplink+":"+port, "")
			}
			out.Run("ip", "route", "add", red.Subnet.String(), "via", uplink)
			wantPeer(t, "from outside to the guest's own port", out, "172.27.0.2:80", "")

			// It goes with the VM, and comes back with it.
			tap := nettest.TapOf("web", red, "172.27.0.2")
			tap.Isolated = c.isolated
			if err := h.AddTap(t.Context(), tap); err != nil {
				t.Fatal(err)
			}
			wantPeer(t, "from outside, not published any more", out, uplink+":8080", "")
		}
		t.Run(c.name, func(t *testing.T) { onBackends(t, test) })
	}
}

// A port that is published on one address is there alone, and of two ports each
// leads to its own guest.
func TestPacketsPublishedOnOneAddress(t *testing.T) { onBackends(t, packetsPublishedOnOneAddress) }

func packetsPublishedOnOneAddress(t *testing.T, h *nettest.RealHost) {
	out := nettest.Outside(t, h.Namespace)
	h.Run("ip", "address", "add", "198.51.100.7/24", "dev", nettest.Uplink)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	red.Published = true
	mustEnsure(t, h, red)
	one := addVM(t, h, red, "one", "172.27.0.2", publish(network.Publish{Protocol: "tcp", HostAddr: netip.MustParseAddr("198.51.100.7"), HostPort: 80, GuestPort: 80}))
	two := addVM(t, h, red, "two", "172.27.0.3",
		publish(network.Publish{Protocol: "tcp", HostAddr: nettest.HostAddr, HostPort: 80, GuestPort: 8000}, network.Publish{Protocol: "tcp", HostAddr: nettest.HostAddr, HostPort: 81, GuestPort: 8001}))
	one.ServePeer("172.27.0.2:80")
	two.ServePeer("172.27.0.3:8000")
	outside := nettest.OutsideAddr.String()
	wantPeer(t, "the first address", out, "198.51.100.7:80", outside)
	wantPeer(t, "the second address", out, nettest.HostAddr.String()+":80", outside)
	wantPeer(t, "the second port", out, nettest.HostAddr.String()+":81", "")
	two.ServePeer("172.27.0.3:8001")
	wantPeer(t, "the second port, served", out, nettest.HostAddr.String()+":81", outside)
	wantPeer(t, "the second port at the first address", out, "198.51.100.7:81", "")
	if h.Run("sysctl", "-n", "net.ipv4.conf.mvm-red.route_localnet") != "0\n" {
		t.Error("the loopback is led to the bridge, and nothing is published there")
	}
}

func TestPacketsPublishedUDP(t *testing.T) { onBackends(t, packetsPublishedUDP) }

func packetsPublishedUDP(t *testing.T, h *nettest.RealHost) {
	out := nettest.Outside(t, h.Namespace)
	red := nettest.SpecOf("red", "172.27.0.0/24")
	red.Published, red.Loopback = true, true
	mustEnsure(t, h, red)
	guest := addVM(t, h, red, "dns", "172.27.0.2", publish(network.Publish{Protocol: "udp", HostPort: 5300, GuestPort: 53}))
	pc := listenUDP(t, guest, "172.27.0.2:53")
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(from.(*net.UDPAddr).IP.String()), from)
		}
	}()
	for _, c := range []struct {
		from     *nettest.Namespace
		to, want string
	}{{out, nettest.HostAddr.String(), nettest.OutsideAddr.String()}, {h.Namespace, "127.0.0.1", "172.27.0.1"}} {
		if got := askUDP(t, c.from, c.to+":5300"); got != c.want {
			t.Errorf("by %s: the guest saw %q, want %q", c.to, got, c.want)
		}
	}
}

// askUDP sends until an answer comes.
func askUDP(t *testing.T, from *nettest.Namespace, addr string) string {
	t.Helper()
	c, err := from.Dial(t.Context(), "udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	buf := make([]byte, 100)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		_, _ = c.Write([]byte("who am I"))
		_ = c.SetReadDeadline(time.Now().Add(silence))
		if n, err := c.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	return ""
}

// bridgeNF has FORWARD see also what stays on one bridge, where br_netfilter is
// loaded.
const bridgeNF = "net.bridge.bridge-nf-call-iptables"

// bridgeNFValues are the values to try; "" where there is no such thing.
func bridgeNFValues() []string {
	if _, err := os.Stat("/proc/sys/" + strings.ReplaceAll(bridgeNF, ".", "/")); err != nil {
		return []string{""}
	}
	return []string{"0", "1"}
}
