package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestNamesOfVMs(t *testing.T) {
	up := serveUpstream(t, "127.0.0.11", "0", records(t, "outside.example. 300 IN A 192.0.2.1"))
	r := run(t, zoneOf(plain, Host{VMID: "id-db", Name: "db", Addr: netip.MustParseAddr("127.0.0.3")}), up)
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{"web", dns.TypeA, 0, []string{"127.0.0.2"}},
		{"WEB.mVm", dns.TypeA, 0, []string{"127.0.0.2"}},
		{"db.mvm", dns.TypeA, 0, []string{"127.0.0.3"}},
		{"db.mvm", dns.TypeANY, 0, []string{"127.0.0.3"}},
		{"db.mvm", dns.TypeAAAA, 0, nil},
		{"db", dns.TypeAAAA, 0, nil},
		{"nosuch.mvm", dns.TypeA, dns.RcodeNameError, nil},
		{"x.db.mvm", dns.TypeA, dns.RcodeNameError, nil},
		{"mvm", dns.TypeA, 0, nil},
		{"2.0.0.127.in-addr.arpa", dns.TypePTR, 0, []string{"web.mvm."}},
		{"2.0.0.127.in-addr.arpa", dns.TypeA, 0, nil},
		{"9.0.0.127.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, nil},
	} {
		for _, how := range []func(*dns.Msg, *dns.Client){func(*dns.Msg, *dns.Client) {}, byTCP} {
			m := r.ask("127.0.0.3", c.name, c.qtype, how)
			if m.Rcode != c.rcode || !slices.Equal(answers(m), c.want) || !m.Authoritative || !m.RecursionAvailable {
				t.Errorf("%s %s: %v", c.name, dns.TypeToString[c.qtype], m)
			}
			if len(m.Answer) == 0 && len(m.Ns) != 1 {
				t.Errorf("%s: nothing says for how long there is nothing: %v", c.name, m)
			}
		}
	}
	if got := up.questions(); len(got) > 0 {
		t.Errorf("the network's own names were asked for outside: %v", got)
	}
	// What is not the network's is asked for outside, in both ways.
	for name, how := range map[string]func(*dns.Msg, *dns.Client){"outside.example": withEDNS, "Outside.example": byTCP} {
		if m := r.ask("127.0.0.2", name, dns.TypeA, how); m.Authoritative || !slices.Equal(answers(m), []string{"192.0.2.1"}) || m.Answer[0].Header().Ttl != 300 {
			t.Errorf("%s: %v", name, m)
		}
	}
	for _, name := range []string{"nas", "1.2.0.192.in-addr.arpa"} {
		if m := r.ask("127.0.0.2", name, dns.TypeA); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v", name, m)
		}
	}
	got := up.questions()
	slices.Sort(got)
	if want := []string{"1.2.0.192.in-addr.arpa. A by udp", "Outside.example. A by tcp", "nas. A by udp", "outside.example. A by udp"}; !slices.Equal(got, want) {
		t.Errorf("asked outside was %v, want %v", got, want)
	}
	if got := r.book.take("id-web"); got != nil {
		t.Errorf("opened for a VM without limits: %v", got)
	}
	// Others come and go without a restart.
	r.use(t.Context(), zoneOf(Host{VMID: "id-new", Name: "new", Addr: netip.MustParseAddr("127.0.0.3")}))
	if m := r.ask("127.0.0.3", "db.mvm", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("a VM that is gone: %v", m)
	}
	if m := r.ask("127.0.0.3", "new", dns.TypeA); !slices.Equal(answers(m), []string{"127.0.0.3"}) {
		t.Errorf("a new VM: %v", m)
	}
	if m := r.ask("127.0.0.2", "new", dns.TypeA, withEDNS); m.Rcode != dns.RcodeRefused || !strings.Contains(m.String(), "not a VM of this network") {
		t.Errorf("asked by who is no VM: %v", m)
	}
}

func TestOddQuestions(t *testing.T) {
	r := run(t, zoneOf(plain))
	for name, c := range map[string]struct {
		change func(*dns.Msg, *dns.Client)
		rcode  int
	}{
		"a transfer":      {func(m *dns.Msg, _ *dns.Client) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused},
		"CHAOS":           {func(m *dns.Msg, _ *dns.Client) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"an update":       {func(m *dns.Msg, _ *dns.Client) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"two questions":   {func(m *dns.Msg, _ *dns.Client) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"no question":     {func(m *dns.Msg, _ *dns.Client) { m.Question = nil }, dns.RcodeFormatError},
		"EDNS of version": {func(m *dns.Msg, _ *dns.Client) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
	} {
		if m := r.ask("127.0.0.2", "web", dns.TypeA, c.change); m.Rcode != c.rcode {
			t.Errorf("%s: %v", name, m)
		}
	}
	if m := r.ask("127.0.0.2", "outside.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a resolver: %v", m)
	}
}

func TestLargeAnswers(t *testing.T) {
	var lines []string
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("big.example. 60 IN A 192.0.2.%d", i))
	}
	whole := records(t, lines...)
	up := serveUpstream(t, "127.0.0.11", "0", func(r *dns.Msg, tcp bool) *dns.Msg {
		m := whole(r, tcp)
		if !tcp {
			m.Truncate(udpSize(r))
		}
		return m
	})
	limited := Host{VMID: "id-few", Name: "few", Addr: netip.MustParseAddr("127.0.0.3"), Limited: true, Names: []string{"big.example"}}
	r := run(t, zoneOf(plain, limited), up)
	small, large := r.ask("127.0.0.2", "big.example", dns.TypeA), r.ask("127.0.0.2", "big.example", dns.TypeA, withEDNS)
	small.Compress, large.Compress = true, true // as they came
	if !small.Truncated || small.Len() > dns.MinMsgSize || !large.Truncated || large.Len() > maxUDP || len(large.Answer) <= len(small.Answer) {
		t.Errorf("by UDP: %d and %d bytes, truncated %v, %v", small.Len(), large.Len(), small.Truncated, large.Truncated)
	}
	if small.IsEdns0() != nil || large.IsEdns0() == nil || large.IsEdns0().UDPSize() != maxUDP {
		t.Errorf("EDNS is %v and %v", small.IsEdns0(), large.IsEdns0())
	}
	for _, guest := range []string{"127.0.0.2", "127.0.0.3"} {
		if m := r.ask(guest, "big.example", dns.TypeA, byTCP); m.Truncated || len(m.Answer) != 100 {
			t.Errorf("by TCP to %s: %d answers, truncated %v", guest, len(m.Answer), m.Truncated)
		}
	}
	if got := r.book.take("id-few"); len(got) != 100 {
		t.Errorf("%d addresses were opened", len(got))
	}
}

func TestResolversThatFail(t *testing.T) {
	good := serveUpstream(t, "127.0.0.11", "0", records(t, "a.example. 60 IN A 192.0.2.1"))
	silent := serveUpstream(t, "127.0.0.12", good.port, func(*dns.Msg, bool) *dns.Msg { return nil })
	broken := serveUpstream(t, "127.0.0.13", good.port, func(r *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(r, dns.RcodeServerFailure) })
	liar := serveUpstream(t, "127.0.0.14", good.port, func(r *dns.Msg, _ bool) *dns.Msg {
		m := new(dns.Msg).SetReply(r)
		m.Question[0].Name = "other.example."
		return m
	})
	r := run(t, zoneOf(plain), broken, silent, liar, good)
	for range 3 {
		if m := r.ask("127.0.0.2", "a.example", dns.TypeA); !slices.Equal(answers(m), []string{"192.0.2.1"}) {
			t.Errorf("answered is %v", m)
		}
	}
	if n := len(silent.questions()); n != 1 {
		t.Errorf("one that does not answer was asked %d times in a row", n)
	}
	if n := len(broken.questions()); n != 3 {
		t.Errorf("one that answers, if not well, was asked %d times of 3", n)
	}
	// Where all are as bad, what one said is passed on.
	if m := run(t, zoneOf(plain), broken, liar).ask("127.0.0.2", "a.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("answered is %v", m)
	}
}

func TestWhichResolvers(t *testing.T) {
	r := newResolvers()
	dir := t.TempDir()
	r.host, r.stub = dir+"/host", dir+"/stub"
	self := netip.MustParseAddr("172.27.0.1")
	want := func(what string, own, fallback []string, list ...string) {
		t.Helper()
		if got := r.of(own, fallback, self); !slices.Equal(got, list) {
			t.Errorf("%s: %v, want %v", what, got, list)
		}
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want("no file", nil, []string{"1.1.1.1"}, "1.1.1.1:53")
	write(r.host, "search x\nnameserver 172.27.0.1\nnameserver 192.0.2.7\nnameserver fe80::1%eth0\nnameserver junk\n")
	want("a file, which names ourselves too", nil, []string{"1.1.1.1"}, "192.0.2.7:53", "[fe80::1%eth0]:53")
	want("a VM's own", []string{"9.9.9.9"}, nil, "9.9.9.9:53")
	write(r.stub, "nameserver 192.0.2.8\n")
	write(r.host, "nameserver 127.0.0.53\noptions edns0\n")
	want("systemd-resolved", nil, nil, "127.0.0.53:53", "192.0.2.8:53")
	r.failed("127.0.0.53:53")
	want("after the stub did not answer", nil, nil, "192.0.2.8:53", "127.0.0.53:53")
	r.answered("127.0.0.53:53")
	want("after it did", nil, nil, "127.0.0.53:53", "192.0.2.8:53")
	write(r.host, "")
	want("an empty file", nil, []string{"1.1.1.1"}, "1.1.1.1:53")
}

func TestVMsThatMayAskForSomeNames(t *testing.T) {
	up := serveUpstream(t, "127.0.0.11", "0", records(t,
		"www.example. 30 IN CNAME cdn.net.", "cdn.net. 7200 IN CNAME edge.cdn.net.", "edge.cdn.net. 90000 IN A 192.0.2.1", "edge.cdn.net. 90000 IN A 192.0.2.2",
		"www.example. 60 IN TXT text", "evil.net. 60 IN A 192.0.2.66",
		"inner.example. 60 IN A 10.1.2.3", "inner.example. 60 IN A 127.0.0.1", "inner.example. 60 IN A 169.254.169.254", "inner.example. 60 IN A 224.0.0.1", "inner.example. 60 IN A 0.0.0.0",
		"a.b.wild.example. 60 IN A 192.0.2.3", "wild.example. 60 IN A 192.0.2.4"))
	few := Host{VMID: "id-few", Name: "few", Addr: netip.MustParseAddr("127.0.0.3"), Limited: true, Names: []string{"*.wild.example", "inner.example", "www.example"}}
	none := Host{VMID: "id-none", Name: "none", Addr: netip.MustParseAddr("127.0.0.4"), Limited: true}
	r := run(t, zoneOf(plain, few, none), up)
	for _, c := range []struct {
		guest, name string
		rcode       int
		open        []string
	}{
		{"127.0.0.3", "WWW.example", 0, []string{"192.0.2.1", "192.0.2.2"}},
		{"127.0.0.3", "inner.example", 0, []string{"10.1.2.3"}},
		{"127.0.0.3", "a.b.wild.example", 0, []string{"192.0.2.3"}},
		{"127.0.0.3", "wild.example", dns.RcodeRefused, nil},
		{"127.0.0.3", "xwild.example", dns.RcodeRefused, nil},
		{"127.0.0.3", "edge.cdn.net", dns.RcodeRefused, nil},
		{"127.0.0.3", "secret.evil.net", dns.RcodeRefused, nil},
		{"127.0.0.3", "web", 0, nil},
		{"127.0.0.4", "web.mvm", 0, nil},
		{"127.0.0.4", "www.example", dns.RcodeRefused, nil},
		{"127.0.0.3", "nosuch.wild.example", dns.RcodeNameError, nil},
	} {
		before := len(up.questions())
		m := r.ask(c.guest, c.name, dns.TypeA, withEDNS)
		if m.Rcode != c.rcode || !slices.Equal(r.book.take("id-few"), c.open) || r.book.take("id-none") != nil {
			t.Errorf("%s asks for %s: %v", c.guest, c.name, m)
		}
		if c.rcode == dns.RcodeRefused && (len(up.questions()) != before || !strings.Contains(m.String(), "may reach")) {
			t.Errorf("%s was asked for outside, or it is not said why not: %v", c.name, m)
		}
		for _, rr := range m.Answer {
			if ttl := time.Duration(rr.Header().Ttl) * time.Second; ttl > maxOpen {
				t.Errorf("%s is valid for %v, longer than it is open", c.name, ttl)
			}
		}
	}
	if m := r.ask("127.0.0.3", "www.example", dns.TypeTXT); !slices.Contains(answers(m), `"text"`) || r.book.take("id-few") != nil {
		t.Errorf("another type: %v", m)
	}
	// What cannot be opened is not given out.
	r.book.fail = errors.New("the rules are gone")
	if m := r.ask("127.0.0.3", "www.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 {
		t.Errorf("not opened, but answered: %v", m)
	}
	r.book.fail = nil
	// When rules were written anew, what is still allowed is opened again.
	r.ask("127.0.0.3", "a.b.wild.example", dns.TypeA)
	r.book.take("id-few")
	r.use(t.Context(), zoneOf(plain, few, none))
	if got := r.book.take("id-few"); !slices.Equal(got, []string{"10.1.2.3", "192.0.2.1", "192.0.2.2", "192.0.2.3"}) {
		t.Errorf("opened again: %v", got)
	}
	few.Names = []string{"*.wild.example"}
	r.use(t.Context(), zoneOf(plain, few, none))
	if got := r.book.take("id-few"); !slices.Equal(got, []string{"192.0.2.3"}) {
		t.Errorf("opened after the list became shorter: %v", got)
	}
	few.Limited = false
	r.use(t.Context(), zoneOf(plain, few, none))
	if got := r.book.take("id-few"); got != nil {
		t.Errorf("opened without limits: %v", got)
	}
}

func TestAddressesOf(t *testing.T) {
	m := records(t, "a.example. 100 IN A 192.0.2.1", "b.example. 100 IN A 192.0.2.2")
	q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	answer := m(q, false).Answer
	other, _ := dns.NewRR("b.example. 100 IN A 192.0.2.2") // unasked for, as a hostile resolver may add
	loop, _ := dns.NewRR("a.example. 100 IN CNAME a.example.")
	got := addressesOf("A.example.", append(answer, other, loop))
	if len(got) != 1 || got[0] != (Address{netip.MustParseAddr("192.0.2.1"), 100*time.Second + minOpen}) {
		t.Errorf("addresses are %v", got)
	}
	var chain []dns.RR
	for i := range 100 {
		rr, _ := dns.NewRR(fmt.Sprintf("n%d.example. 0 IN CNAME n%d.example.", i, i+1))
		chain = append(chain, rr)
	}
	end, _ := dns.NewRR("n100.example. 0 IN A 192.0.2.1")
	slices.Reverse(chain)
	if got := addressesOf("n0.example.", append(chain, end)); got != nil {
		t.Errorf("after a hundred aliases: %v", got)
	}
}

func TestGate(t *testing.T) {
	g := gate{total: 3, each: 2}
	a, b := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
	for i, step := range []struct {
		who  netip.Addr
		want bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {b, false}} {
		if got := g.enter(step.who); got != step.want {
			t.Errorf("step %d: let in %v", i, got)
		}
	}
	g.leave(a)
	if !g.enter(b) || g.enter(a) {
		t.Error("who leaves makes room for one")
	}
	for _, who := range []netip.Addr{a, b, b} {
		g.leave(who)
	}
	if g.n != 0 || len(g.who) != 0 {
		t.Errorf("all have left, and %d are in: %v", g.n, g.who)
	}
}

// A guest has so many connections at once, and another one has its own.
func TestConnectionsOfOneGuest(t *testing.T) {
	r := run(t, zoneOf(plain, Host{VMID: "id-db", Name: "db", Addr: netip.MustParseAddr("127.0.0.3")}))
	hold := func() *dns.Conn {
		c := &dns.Client{Net: "tcp", Timeout: patience, Dialer: dialerFrom("127.0.0.2")}
		conn, err := c.Dial(r.at)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ask := func(conn *dns.Conn) error {
		_ = conn.SetDeadline(time.Now().Add(patience))
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion("db.mvm.", dns.TypeA)); err != nil {
			return err
		}
		_, err := conn.ReadMsg()
		return err
	}
	var held []*dns.Conn
	for range maxGuestConns {
		conn := hold()
		if err := ask(conn); err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	extra := hold()
	if err := ask(extra); err == nil {
		t.Errorf("a guest has %d connections", maxGuestConns+1)
	}
	_ = extra.Close()
	r.ask("127.0.0.3", "web", dns.TypeA, byTCP)
	for _, c := range held {
		_ = c.Close()
	}
}
