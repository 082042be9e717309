package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Files that name the host's resolvers. Where the first names the stub of
// systemd-resolved, that is asked like any other: it knows which of its servers is
// responsible for what. Should it not answer, its servers are asked themselves.
const (
	hostResolvers = "/etc/resolv.conf"
	stubResolvers = "/run/systemd/resolve/resolv.conf"
)

// isStub says whether an address is systemd-resolved's (systemd-resolved.service(8)).
func isStub(server string) bool { return server == "127.0.0.53" || server == "127.0.0.54" }

// resolvers are the host's, read again when their files change.
type resolvers struct {
	host, stub string // files
	port       string // of resolvers that are named without one

	mu    sync.Mutex
	stamp [2]fileStamp
	list  []string
	slow  map[string]time.Time // until when a resolver is asked last
}

type fileStamp struct {
	size int64
	at   time.Time
}

func newResolvers() *resolvers {
	return &resolvers{host: hostResolvers, stub: stubResolvers, port: "53", slow: map[string]time.Time{}}
}

func stampOf(path string) fileStamp {
	st, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{st.Size(), st.ModTime()}
}

// of returns the resolvers to ask for a VM, as ADDRESS:PORT, in the order in which
// they are to be asked. Our own address is none of them.
func (r *resolvers) of(own []string, fallback []string, self netip.Addr) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	servers := own
	if len(servers) == 0 {
		servers = r.ofHost()
	}
	if len(servers) == 0 {
		servers = fallback
	}
	var now, last []string
	for _, s := range servers {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Unmap() == self || a.IsUnspecified() {
			continue
		}
		at := net.JoinHostPort(s, r.port)
		if time.Now().Before(r.slow[at]) {
			last = append(last, at)
		} else {
			now = append(now, at)
		}
	}
	return append(now, last...)
}

func (r *resolvers) ofHost() []string {
	stamp := [2]fileStamp{stampOf(r.host), stampOf(r.stub)}
	if stamp == r.stamp && r.list != nil {
		return r.list
	}
	r.stamp, r.list = stamp, serversIn(r.host)
	if slices.ContainsFunc(r.list, isStub) {
		for _, s := range serversIn(r.stub) {
			if !slices.Contains(r.list, s) {
				r.list = append(r.list, s)
			}
		}
	}
	return r.list
}

// serversIn reads a resolv.conf(5). One that is missing names none; so does one that
// cannot be read, which is no reason not to answer for VMs.
func serversIn(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	conf, err := dns.ClientConfigFromReader(f)
	if err != nil {
		return nil
	}
	return conf.Servers
}

// failed has a resolver be asked last for a while.
func (r *resolvers) failed(server string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.slow) > 64 { // of files that have changed
		clear(r.slow)
	}
	r.slow[server] = time.Now().Add(restLimit)
}

func (r *resolvers) answered(server string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.slow, server)
}

var errNoResolver = errors.New("no resolver answered")

// ask asks one server after the other until one knows. An answer that says that the
// server cannot or will not is kept for when no other does better.
func (r *resolvers) ask(ctx context.Context, servers []string, query *dns.Msg, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var poor *dns.Msg
	for _, server := range servers {
		if ctx.Err() != nil {
			break
		}
		answer, err := r.askOne(ctx, server, query, tcp)
		if err != nil {
			r.failed(server)
			continue
		}
		r.answered(server)
		if answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused && answer.Rcode != dns.RcodeNotImplemented {
			return answer, nil
		}
		if poor == nil {
			poor = answer
		}
	}
	if poor == nil {
		return nil, errNoResolver
	}
	return poor, nil
}

// askOne asks by a socket of its own: the port is another one each time, as the id
// is, so that answers are hard to forge (RFC 5452).
func (r *resolvers) askOne(ctx context.Context, server string, query *dns.Msg, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	c := dns.Client{Net: "udp", UDPSize: maxUDP}
	if tcp {
		c.Net = "tcp"
	}
	q := query.Copy()
	q.Id = dns.Id()
	answer, _, err := c.ExchangeContext(ctx, q, server)
	switch {
	case err != nil:
		return nil, err
	case !answer.Response || len(answer.Question) != 1 || !sameQuestion(answer.Question[0], q.Question[0]):
		return nil, errors.New("the answer is to another question")
	}
	return answer, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
