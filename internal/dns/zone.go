package dns

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// Zone is all that a server knows of its network.
type Zone struct {
	Network  string       `json:"network"`
	Gateway  netip.Addr   `json:"gateway"`
	Subnet   netip.Prefix `json:"subnet"`
	Fallback []string     `json:"fallback"` // resolvers where the host has none
	Hosts    []Host       `json:"hosts"`
}

// Host is a VM.
type Host struct {
	VMID    string     `json:"vm_id"`
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"addr"`
	Servers []string   `json:"servers,omitempty"` // asked in place of the host's resolvers

	// Limited says that the VM may ask for Names only: DNS names, or *.NAME for all
	// below NAME.
	Limited bool     `json:"limited,omitempty"`
	Names   []string `json:"names,omitempty"`
}

// zoneFile is the file's name in the server's directory.
const zoneFile = "zone.json"

// Write replaces the zone of the server that has this directory. It is readable by
// all: the server has given up its rights.
func (z Zone) Write(dir string) error {
	data, err := json.Marshal(z)
	if err != nil {
		return err
	}
	return fsx.SwapFile(filepath.Join(dir, zoneFile), data, 0o644)
}

func readZone(dir string) (Zone, error) {
	var z Zone
	data, err := os.ReadFile(filepath.Join(dir, zoneFile))
	if err == nil {
		err = json.Unmarshal(data, &z)
	}
	return z, err
}

// index is a zone as questions are answered from it.
type index struct {
	Zone
	byName map[string]*Host
	byAddr map[netip.Addr]*Host
}

func newIndex(z Zone) *index {
	x := &index{Zone: z, byName: make(map[string]*Host, len(z.Hosts)), byAddr: make(map[netip.Addr]*Host, len(z.Hosts))}
	for i := range z.Hosts {
		h := &z.Hosts[i]
		if name := strings.ToLower(h.Name); x.byName[name] == nil { // Web and web are one name here: the first in the list
			x.byName[name] = h
		}
		x.byAddr[h.Addr] = h
	}
	return x
}

// domain is what VMs are below.
const domain = mvm.DNSDomain + "."

// answer answers what is the network's own to answer: names of VMs, with domain or
// without, and the addresses of its subnet. It says no to all else, which is for
// others to answer.
func (x *index) answer(q dns.Question, m *dns.Msg) bool {
	name := dns.CanonicalName(q.Name)
	if name == domain || dns.IsSubDomain(domain, name) {
		x.answerName(q, strings.TrimSuffix(strings.TrimSuffix(name, domain), "."), m)
		return true
	}
	if bare := strings.TrimSuffix(name, "."); !strings.Contains(bare, ".") && x.byName[bare] != nil {
		x.answerName(q, bare, m)
		return true
	}
	addr, ok := reversed(name)
	if !ok || !x.Subnet.Contains(addr) {
		return false
	}
	m.Authoritative = true
	if h := x.byAddr[addr]; h == nil {
		x.none(m, dns.RcodeNameError)
	} else if q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY {
		m.Answer = []dns.RR{&dns.PTR{Hdr: header(q, dns.TypePTR), Ptr: strings.ToLower(h.Name) + "." + domain}}
	} else {
		x.none(m, dns.RcodeSuccess)
	}
	return true
}

// answerName answers for a VM, or with "" for the domain itself.
func (x *index) answerName(q dns.Question, vm string, m *dns.Msg) {
	m.Authoritative = true
	switch h := x.byName[vm]; {
	case h == nil && vm != "":
		x.none(m, dns.RcodeNameError)
	case h != nil && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY):
		m.Answer = []dns.RR{&dns.A{Hdr: header(q, dns.TypeA), A: h.Addr.AsSlice()}}
	case h == nil && q.Qtype == dns.TypeSOA:
		m.Answer = []dns.RR{soa()}
	default:
		x.none(m, dns.RcodeSuccess)
	}
}

// none says that there is no such name, or nothing of the type asked for; the SOA
// tells for how long that is so (RFC 2308).
func (x *index) none(m *dns.Msg, rcode int) {
	m.Rcode, m.Ns = rcode, []dns.RR{soa()}
}

func soa() dns.RR {
	return &dns.SOA{Hdr: dns.RR_Header{Name: domain, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: localTTL},
		Ns: domain, Mbox: domain, Serial: 1, Refresh: localTTL, Retry: localTTL, Expire: localTTL, Minttl: localTTL}
}

func header(q dns.Question, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: localTTL}
}

// reversed reads the name of an IPv4 address (RFC 1035, 3.5).
func reversed(name string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa.")
	if !ok {
		return netip.Addr{}, false
	}
	parts := strings.Split(digits, ".")
	slices.Reverse(parts)
	addr, err := netip.ParseAddr(strings.Join(parts, "."))
	return addr, err == nil && addr.Is4()
}

// mayAsk says whether a VM may ask for a name outside.
func (h *Host) mayAsk(name string) bool {
	if !h.Limited {
		return true
	}
	name = strings.TrimSuffix(dns.CanonicalName(name), ".")
	return slices.ContainsFunc(h.Names, func(allowed string) bool {
		if below, all := strings.CutPrefix(allowed, "*."); all {
			return strings.HasSuffix(name, "."+below)
		}
		return name == allowed
	})
}
