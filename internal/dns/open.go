package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// opened knows which addresses were opened for whom, so that they can be opened
// again when a VM's rules were written anew.
type opened struct {
	opener Opener

	mu sync.Mutex
	by map[string]map[netip.Addr]openedAddr // by VM
}

type openedAddr struct {
	name  string // what was asked for
	until time.Time
}

// maxOpened bounds the addresses that are open for one VM.
const maxOpened = 4096

// maxAliases is how many CNAMEs after another are followed; resolvers follow about as many.
const maxAliases = 16

func newOpened(o Opener) *opened {
	return &opened{opener: o, by: map[string]map[netip.Addr]openedAddr{}}
}

// open opens the addresses of an answer to a question that the VM may ask, and has
// the answer be valid for as long as they are open at most.
func (o *opened) open(ctx context.Context, vm *Host, name string, answer []dns.RR) error {
	addrs := addressesOf(name, answer)
	if len(addrs) == 0 {
		return nil
	}
	if err := o.opener.Open(ctx, vm.VMID, addrs); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	mine, now := o.by[vm.VMID], time.Now()
	if mine == nil {
		mine = map[netip.Addr]openedAddr{}
		o.by[vm.VMID] = mine
	}
	for a, was := range mine {
		if now.After(was.until) || len(mine) >= maxOpened {
			delete(mine, a)
		}
	}
	for _, a := range addrs {
		if until := now.Add(a.For); until.After(mine[a.Addr].until) {
			mine[a.Addr] = openedAddr{name, until}
		}
	}
	return nil
}

// renew opens again what is still to be open, for VMs whose rules may have been
// written anew, and forgets what a VM may not reach by name any more.
func (o *opened) renew(ctx context.Context, z Zone) {
	o.mu.Lock()
	again := map[string][]Address{}
	was := o.by
	o.by = map[string]map[netip.Addr]openedAddr{}
	for i := range z.Hosts {
		h := &z.Hosts[i]
		if !h.Limited || was[h.VMID] == nil {
			continue
		}
		mine := map[netip.Addr]openedAddr{}
		for a, at := range was[h.VMID] {
			if left := time.Until(at.until); left > 0 && h.mayAsk(at.name) {
				mine[a] = at
				again[h.VMID] = append(again[h.VMID], Address{a, left})
			}
		}
		o.by[h.VMID] = mine
	}
	o.mu.Unlock()
	for vm, addrs := range again {
		_ = o.opener.Open(ctx, vm, addrs) // a VM that has stopped has nothing to open
	}
}

// addressesOf returns the IPv4 addresses that an answer gives for a name, by way of
// the aliases in it, and bounds the time for which its records are valid. Records of
// other names do not count, nor addresses that are the host's own matter: loopback,
// link-local, multicast.
func addressesOf(name string, answer []dns.RR) []Address {
	names := []string{dns.CanonicalName(name)}
	ttl := uint32(maxOpen / time.Second)
	for range min(len(answer), maxAliases) { // aliases may stand in any order
		for _, rr := range answer {
			if alias, ok := rr.(*dns.CNAME); ok && slices.Contains(names, dns.CanonicalName(alias.Hdr.Name)) {
				if to := dns.CanonicalName(alias.Target); !slices.Contains(names, to) {
					names = append(names, to)
				}
			}
		}
	}
	var addrs []Address
	for _, rr := range answer {
		h := rr.Header()
		h.Ttl = min(h.Ttl, ttl)
		a, ok := rr.(*dns.A)
		if !ok || !slices.Contains(names, strings.ToLower(h.Name)) {
			continue
		}
		addr, ok := netip.AddrFromSlice(a.A.To4())
		if !ok || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() || addr.As4()[0] >= 240 || addr.As4()[0] == 0 {
			continue
		}
		// A guest takes the answer a moment after it was opened.
		addrs = append(addrs, Address{addr, max(time.Duration(h.Ttl)*time.Second, minOpen) + minOpen})
	}
	return addrs
}
