package linux

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/mvmctl/mvm/internal/dns"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// TestMain has this program be the DNS server that a test starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == dns.Command {
		os.Exit(dns.Main(os.Args[2:], kernelOpener{New()}))
	}
	os.Exit(m.Run())
}

// kernelOpener is what the api puts between the two.
type kernelOpener struct{ k *Kernel }

func (o kernelOpener) Open(ctx context.Context, vmID string, addrs []dns.Address) error {
	var open []network.OpenAddr
	for _, a := range addrs {
		open = append(open, network.OpenAddr{Addr: a.Addr, For: a.For})
	}
	return o.k.OpenEgress(ctx, network.TapSpec{Name: network.TapName(vmID), VMID: vmID}, open)
}

// A network's DNS server opens what a VM may reach by name, is heard by nobody but its
// network's VMs, and sees to it that what was open is open again.
func TestPacketsNames(t *testing.T) {
	h := nettest.NewHost(t, New())
	out := outsideOf(t, h)
	resolver(t, out, "a.example. 300 IN A 198.51.100.3", "b.example. 300 IN A 198.51.100.4")
	red := nettest.SpecOf("red", "172.27.0.0/24")
	red.DNS = true
	mustEnsure(t, h, red)
	few := func(s *network.TapSpec) { s.Egress = egressTo() }
	one, two := addVM(t, h, red, "vm1", "172.27.0.2", few), addVM(t, h, red, "vm2", "172.27.0.3", few)
	own := []string{nettest.OutsideAddr.String()}
	z := dns.Zone{Network: "red", Gateway: red.Gateway, Subnet: red.Subnet, Hosts: []dns.Host{
		{VMID: "vm1", Name: "one", Addr: netip.MustParseAddr("172.27.0.2"), Servers: own, Limited: true, Names: []string{"a.example"}},
		{VMID: "vm2", Name: "two", Addr: netip.MustParseAddr("172.27.0.3"), Servers: own, Limited: true},
	}}
	dir := t.TempDir()
	if err := z.Write(dir); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := dns.Server{NetworkID: "names-" + t.Name(), Exe: exe, Dir: dir, Listen: netip.AddrPortFrom(red.Gateway, dns.Port), Device: red.Bridge}
	t.Cleanup(func() { _ = dns.Stop(context.Background(), s.NetworkID, dir) })
	ensure := func() (started bool) {
		t.Helper()
		var err error
		h.Do(func() { started, err = s.Ensure(t.Context()) })
		if err != nil {
			t.Fatal(err)
		}
		return started
	}
	ensure()
	uplink, gateway := nettest.HostAddr.String(), s.Listen.String()
	wantAnswer := func(from *nettest.Namespace, how, name, want string, rcode int) {
		t.Helper()
		m := askName(t, from, how, gateway, name, patience)
		got := ""
		if m != nil && len(m.Answer) == 1 {
			got = m.Answer[0].(*mdns.A).A.String()
		}
		if m == nil || m.Rcode != rcode || got != want {
			t.Errorf("%s by %s: %v", name, how, m)
		}
	}
	wantPeer(t, "before the name was asked for", one, named, "")
	wantAnswer(one, "udp4", "a.example.", "198.51.100.3", mdns.RcodeSuccess)
	wantPeer(t, "once it was", one, named, uplink)
	wantPeer(t, "by another VM", two, named, "")
	wantAnswer(one, "tcp4", "b.example.", "", mdns.RcodeRefused)
	wantAnswer(two, "udp4", "a.example.", "", mdns.RcodeRefused)
	wantPeer(t, "what is not listed", one, neither, "")
	wantAnswer(two, "udp4", "one.", "172.27.0.2", mdns.RcodeSuccess)
	wantAnswer(one, "tcp4", "two.mvm.", "172.27.0.3", mdns.RcodeSuccess)

	// Nobody else is told anything, and who comes another way is not heard.
	out.Run("ip", "route", "add", red.Subnet.String(), "via", uplink)
	if m := askName(t, out, "udp4", gateway, "one.mvm.", silence); m != nil {
		t.Errorf("outside is answered: %v", m)
	}
	h.Run("nft", "delete", "table", "ip", red.Bridge)
	if m := askName(t, out, "udp4", gateway, "one.mvm.", silence); m != nil {
		t.Errorf("outside is answered where no rule is in the way: %v", m)
	}
	mustEnsure(t, h, red)
	wantAnswer(h.Namespace, "udp4", "one.mvm.", "", mdns.RcodeRefused)
	// Rules that were written anew are empty, until the server hears of it.
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	tap.Egress = egressTo("203.0.113.0/24")
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	wantPeer(t, "after its rules were written anew", one, named, "")
	if err := z.Write(dir); err != nil {
		t.Fatal(err)
	}
	wantPeer(t, "when its server knows of that", one, named, uplink)
	// A bridge that was made anew is another one.
	if ensure() {
		t.Error("a server that runs was started again")
	}
	h.DelLink(red.Bridge)
	mustEnsure(t, h, red)
	if !ensure() {
		t.Error("the server of a bridge that is gone was left alone")
	}
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	wantAnswer(one, "udp4", "two.", "172.27.0.3", mdns.RcodeSuccess)
}

// askName asks a server, again and again until it answers, or the time is over.
func askName(t *testing.T, from *nettest.Namespace, how, server, name string, limit time.Duration) *mdns.Msg {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(t.Context(), silence)
		c, err := from.Dial(ctx, how, server)
		cancel()
		if err != nil {
			continue
		}
		conn := &mdns.Conn{Conn: c}
		_ = conn.SetDeadline(time.Now().Add(max(silence, limit/10)))
		if conn.WriteMsg(new(mdns.Msg).SetQuestion(name, mdns.TypeA)) == nil {
			if m, err := conn.ReadMsg(); err == nil {
				_ = conn.Close()
				return m
			}
		}
		_ = conn.Close()
	}
	return nil
}

// resolver answers in a namespace, at its first address.
func resolver(t *testing.T, ns *nettest.Namespace, records ...string) {
	t.Helper()
	h := mdns.HandlerFunc(func(w mdns.ResponseWriter, r *mdns.Msg) {
		m := new(mdns.Msg).SetReply(r)
		for _, line := range records {
			if rr, err := mdns.NewRR(line); err == nil && rr.Header().Name == r.Question[0].Name {
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	})
	at := netip.AddrPortFrom(nettest.OutsideAddr, dns.Port).String()
	udp := listenUDP(t, ns, at)
	l, err := ns.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, s := range []*mdns.Server{{PacketConn: udp, Handler: h}, {Listener: l, Handler: h}} {
		wg.Go(func() { _ = s.ActivateAndServe() })
	}
	t.Cleanup(func() { _, _ = udp.Close(), l.Close(); wg.Wait() })
}
