package dns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestMain has this program be the server that a test starts. It opens addresses by
// writing them down.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		os.Exit(Main(os.Args[2:], nil))
	}
	os.Exit(m.Run())
}

const patience = 20 * time.Second

// book is an Opener that keeps what it was asked for.
type book struct {
	mu    sync.Mutex
	fail  error
	pages map[string][]Address
}

func (b *book) Open(_ context.Context, vm string, addrs []Address) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	if b.pages == nil {
		b.pages = map[string][]Address{}
	}
	b.pages[vm] = append(b.pages[vm], addrs...)
	return nil
}

// take returns what was opened for a VM, and forgets it.
func (b *book) take(vm string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, a := range b.pages[vm] {
		out = append(out, a.Addr.String())
	}
	delete(b.pages, vm)
	slices.Sort(out)
	return out
}

// upstream is a resolver on this machine's loopback.
type upstream struct {
	addr  string // without the port, which is that of all of them
	port  string
	mu    sync.Mutex
	asked []string // NAME TYPE by udp or tcp
}

func (u *upstream) questions() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.asked)
}

// serveUpstream starts a resolver at an address and port ("0" for any).
func serveUpstream(t *testing.T, addr, port string, answer func(r *dns.Msg, tcp bool) *dns.Msg) *upstream {
	t.Helper()
	pc, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", net.JoinHostPort(addr, port))
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: addr}
	_, u.port, _ = net.SplitHostPort(pc.LocalAddr().String())
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		_, tcp := peer(w.RemoteAddr())
		how := " by udp"
		if tcp {
			how = " by tcp"
		}
		u.mu.Lock()
		u.asked = append(u.asked, r.Question[0].Name+" "+dns.TypeToString[r.Question[0].Qtype]+how)
		u.mu.Unlock()
		if m := answer(r, tcp); m != nil {
			_ = w.WriteMsg(m)
		}
	})
	var wg sync.WaitGroup
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		wg.Go(func() { _ = s.ActivateAndServe() })
	}
	t.Cleanup(func() { _, _ = pc.Close(), l.Close(); wg.Wait() })
	return u
}

// records answers with what zone files would have.
func records(t *testing.T, lines ...string) func(*dns.Msg, bool) *dns.Msg {
	t.Helper()
	var rrs []dns.RR
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	return func(r *dns.Msg, _ bool) *dns.Msg {
		m := new(dns.Msg).SetReply(r)
		names := []string{dns.CanonicalName(r.Question[0].Name)}
		for _, rr := range rrs {
			if !slices.Contains(names, dns.CanonicalName(rr.Header().Name)) {
				continue
			}
			if c, ok := rr.(*dns.CNAME); ok {
				names = append(names, c.Target)
			} else if rr.Header().Rrtype != r.Question[0].Qtype {
				continue
			}
			m.Answer = append(m.Answer, dns.Copy(rr))
		}
		if len(names) == 1 && len(m.Answer) == 0 {
			m.Rcode = dns.RcodeNameError
		}
		return m
	}
}

// running is a server on the loopback, whose guests have addresses there.
type running struct {
	*server
	t    *testing.T
	book *book
	at   string
}

func run(t *testing.T, z Zone, ups ...*upstream) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	udp, tcp, err := (Server{Listen: netip.MustParseAddrPort("127.0.0.1:0")}).listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pc, err1 := net.FilePacketConn(udp)
	l, err2 := net.FileListener(tcp)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	_, _ = udp.Close(), tcp.Close()
	b := &book{}
	s := newServer(ctx, z, b)
	s.resolvers.host = filepath.Join(t.TempDir(), "resolv.conf")
	s.resolvers.stub = s.resolvers.host + ".stub"
	conf := ""
	for _, u := range ups {
		conf += "nameserver " + u.addr + "\n"
		s.resolvers.port = u.port
	}
	if err := os.WriteFile(s.resolvers.host, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.serve(ctx, pc, l) }()
	t.Cleanup(func() { cancel(); <-done })
	return &running{server: s, t: t, book: b, at: pc.LocalAddr().String()}
}

// ask asks as the guest that has an address.
func (r *running) ask(guest, name string, qtype uint16, change ...func(*dns.Msg, *dns.Client)) *dns.Msg {
	r.t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	c := &dns.Client{Timeout: patience}
	for _, f := range change {
		f(q, c)
	}
	from := netip.MustParseAddr(guest).AsSlice()
	c.Dialer = &net.Dialer{Timeout: patience, LocalAddr: &net.UDPAddr{IP: from}}
	if c.Net == "tcp" {
		c.Dialer.LocalAddr = &net.TCPAddr{IP: from}
	}
	m, _, err := c.Exchange(q, r.at)
	if err != nil {
		r.t.Fatalf("%s asks for %s: %v", guest, name, err)
	}
	return m
}

func byTCP(_ *dns.Msg, c *dns.Client)    { c.Net = "tcp" }
func withEDNS(m *dns.Msg, c *dns.Client) { m.SetEdns0(4096, false); c.UDPSize = 4096 }
func answers(m *dns.Msg) (texts []string) {
	for _, rr := range m.Answer {
		texts = append(texts, rr.String()[len(rr.Header().String()):])
	}
	return texts
}

var plain = Host{VMID: "id-web", Name: "Web", Addr: netip.MustParseAddr("127.0.0.2")}

func zoneOf(hosts ...Host) Zone {
	return Zone{Network: "lab", Gateway: netip.MustParseAddr("127.0.0.1"), Subnet: netip.MustParsePrefix("127.0.0.0/24"), Hosts: hosts}
}

func dialerFrom(guest string) *net.Dialer {
	return &net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: netip.MustParseAddr(guest).AsSlice()}}
}

// netFileAddr is where a listening socket listens.
func netFileAddr(f *os.File) (netip.AddrPort, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}
