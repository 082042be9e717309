package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// server answers the guests of one network.
type server struct {
	zone      atomic.Pointer[index]
	resolvers *resolvers
	opened    *opened
	queries   gate
	ctx       context.Context // ends with the server
}

func newServer(ctx context.Context, z Zone, open Opener) *server {
	s := &server{resolvers: newResolvers(), opened: newOpened(open), queries: gate{total: maxQueries, each: maxGuestQueries}, ctx: ctx}
	s.zone.Store(newIndex(z))
	return s
}

// use has the server answer by another zone from now on.
func (s *server) use(ctx context.Context, z Zone) {
	s.zone.Store(newIndex(z))
	s.opened.renew(ctx, z)
}

// serve answers until ctx ends. It closes both.
func (s *server) serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	servers := []*dns.Server{
		{PacketConn: udp, Handler: s, UDPSize: maxUDP},
		{Listener: &guarded{Listener: tcp, gate: gate{total: maxConns, each: maxGuestConns}}, Handler: s, ReadTimeout: readLimit, WriteTimeout: readLimit,
			MaxTCPQueries: maxConnQueries, IdleTimeout: func() time.Duration { return idleLimit }},
	}
	ended := make(chan error, len(servers))
	for _, srv := range servers {
		go func() { ended <- srv.ActivateAndServe() }()
	}
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	_, _ = udp.Close(), tcp.Close()
	return err
}

// ServeDNS implements dns.Handler.
func (s *server) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	from, overTCP := peer(w.RemoteAddr())
	if !s.queries.enter(from) {
		return // the guest asks again
	}
	defer s.queries.leave(from)
	x := s.zone.Load()
	guest := x.byAddr[from]
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	if opt := r.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
		if opt.Version() != 0 { // RFC 6891, 6.1.3
			m.Rcode = dns.RcodeBadVers
			_ = w.WriteMsg(m)
			return
		}
	}
	s.fill(x, guest, r, m, overTCP)
	if !overTCP {
		m.Truncate(udpSize(r))
	}
	_ = w.WriteMsg(m)
}

// fill answers a query in m.
func (s *server) fill(x *index, guest *Host, r, m *dns.Msg, overTCP bool) {
	q := r.Question[0] // exactly one, else the library has refused it
	switch {
	case guest == nil: // no VM of this network
		refuse(m, dns.ExtendedErrorCodeProhibited, "not a VM of this network")
	case q.Qclass != dns.ClassINET, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		m.Rcode = dns.RcodeRefused
	case x.answer(q, m):
	case !guest.mayAsk(q.Name):
		refuse(m, dns.ExtendedErrorCodeBlocked, "not among the names that this VM may reach")
	default:
		s.forward(x, guest, r, m, overTCP)
	}
}

// refuse says why (RFC 8914) where the guest understands it.
func refuse(m *dns.Msg, code uint16, why string) {
	m.Rcode = dns.RcodeRefused
	if opt := m.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: why})
	}
}

// forward has a resolver answer.
func (s *server) forward(x *index, guest *Host, r, m *dns.Msg, overTCP bool) {
	query := &dns.Msg{Question: slices.Clone(r.Question)}
	query.RecursionDesired, query.CheckingDisabled, query.AuthenticatedData = r.RecursionDesired, r.CheckingDisabled, r.AuthenticatedData
	opt := r.IsEdns0()
	query.SetEdns0(maxUDP, opt != nil && opt.Do()) // what else the guest's has is for us alone
	answer, err := s.resolvers.ask(s.ctx, s.resolvers.of(guest.Servers, x.Fallback, x.Gateway), query, overTCP)
	if err != nil {
		m.Rcode = dns.RcodeServerFailure
		return
	}
	m.Rcode, m.Truncated, m.AuthenticatedData = answer.Rcode, answer.Truncated, answer.AuthenticatedData
	m.Answer, m.Ns = answer.Answer, answer.Ns
	for _, rr := range answer.Extra {
		if rr.Header().Rrtype != dns.TypeOPT && rr.Header().Rrtype != dns.TypeTSIG {
			m.Extra = append([]dns.RR{rr}, m.Extra...)
		}
	}
	if now := s.zone.Load().byAddr[guest.Addr]; now == nil || now.VMID != guest.VMID || !now.mayAsk(r.Question[0].Name) {
		m.Rcode, m.Answer, m.Ns = dns.RcodeRefused, nil, nil // its list has changed meanwhile
		return
	}
	if !guest.Limited {
		return
	}
	if err := s.opened.open(s.ctx, guest, r.Question[0].Name, m.Answer); err != nil {
		// An address that cannot be reached is worse than none.
		m.Rcode, m.Answer, m.Ns = dns.RcodeServerFailure, nil, nil
	}
}

// udpSize is how large an answer by UDP may be.
func udpSize(r *dns.Msg) int {
	size := dns.MinMsgSize
	if opt := r.IsEdns0(); opt != nil {
		size = int(opt.UDPSize())
	}
	return min(max(size, dns.MinMsgSize), maxUDP)
}

// peer returns who sent something.
func peer(a net.Addr) (from netip.Addr, tcp bool) {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap(), false
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap(), true
	}
	return netip.Addr{}, false
}

// gate bounds how much of something is under way at once, in all and for each guest.
type gate struct {
	total, each int

	mu  sync.Mutex
	n   int
	who map[netip.Addr]int
}

func (g *gate) enter(who netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n >= g.total || g.who[who] >= g.each {
		return false
	}
	if g.who == nil {
		g.who = map[netip.Addr]int{}
	}
	g.n++
	g.who[who]++
	return true
}

func (g *gate) leave(who netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	if g.who[who]--; g.who[who] <= 0 {
		delete(g.who, who)
	}
}

// guarded is a listener that takes no more connections than its gate lets in. Others
// are closed before anything is read from them.
type guarded struct {
	net.Listener
	gate gate
}

func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, _ := peer(c.RemoteAddr())
		if g.gate.enter(from) {
			return &counted{Conn: c, leave: sync.OnceFunc(func() { g.gate.leave(from) })}, nil
		}
		_ = c.Close()
	}
}

type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}
