package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
)

// Bounds of a subnet's prefix length: below it is most of a class A network,
// above it there is no room for a gateway and a guest.
const (
	minBits = 8
	maxBits = 30
)

// reserved are ranges that can never work for guests, and why.
var reserved = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "means 'this network' (RFC 1122)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "is the loopback range"},
	{netip.MustParsePrefix("169.254.0.0/16"), "is the link-local range, which cloud metadata services use"},
	{netip.MustParsePrefix("224.0.0.0/4"), "is the multicast range"},
	{netip.MustParsePrefix("240.0.0.0/4"), "is reserved (RFC 1112)"},
}

// sharedRange is carriers' address space (RFC 6598): neither private nor public.
var sharedRange = netip.MustParsePrefix("100.64.0.0/10")

// privateRanges are those of RFC 1918.
var privateRanges = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
}

// ValidateSubnet reads the subnet of a network, such as "172.27.0.0/24". All
// that cannot work gives mvm.ErrInvalid (IPv6: mvm.ErrUnsupported); what works
// but hides a part of the internet from the guests comes back as warnings.
func ValidateSubnet(cidr string) (netip.Prefix, []string, error) {
	q := mvm.Quote(clip(cidr))
	invalid := func(why, hint string, args ...any) (netip.Prefix, []string, error) {
		return netip.Prefix{}, nil, mvm.Errorf(mvm.ErrInvalid, "subnet %s %s", q, why).WithHint(hint, args...)
	}
	addr, _, slash := strings.Cut(cidr, "/")
	ip, err := netip.ParseAddr(addr)
	switch {
	case err != nil:
		return invalid("is not an IPv4 network in CIDR notation", "write it like 172.27.0.0/24")
	case !ip.Is4():
		return netip.Prefix{}, nil, mvm.Errorf(mvm.ErrUnsupported, "subnet %s is IPv6, which networks do not have yet", q).
			WithHint("use an IPv4 subnet such as 172.27.0.0/24")
	case !slash:
		return invalid("has no prefix length", "write it like %s/24", netip.PrefixFrom(ip, 24).Masked().Addr())
	}
	p, err := netip.ParsePrefix(cidr)
	switch {
	case err != nil:
		return invalid("has no prefix length from 0 to 32", "write it like %s", netip.PrefixFrom(ip, 24).Masked())
	case p.Bits() > maxBits:
		return invalid("is too small for a gateway and a guest", "use a prefix length of %d or less, such as %s", maxBits, netip.PrefixFrom(ip, 24).Masked())
	case p.Bits() < minBits:
		return invalid("is too large", "use a prefix length of %d or more, such as 172.27.0.0/24", minBits)
	case p != p.Masked():
		return invalid("has host bits set", "use %s", p.Masked())
	}
	for _, r := range reserved {
		if r.prefix.Overlaps(p) {
			return invalid("cannot be used: "+r.prefix.String()+" "+r.why, "use a private range such as 172.27.0.0/24")
		}
	}
	return p, rangeWarnings(p), nil
}

// IsPublic reports whether a valid subnet holds addresses that are somebody's on
// the internet.
func IsPublic(p netip.Prefix) bool {
	last := Broadcast(p)
	within := func(r netip.Prefix) bool { return r.Contains(p.Addr()) && r.Contains(last) }
	return !within(sharedRange) && !slices.ContainsFunc(privateRanges, within)
}

func rangeWarnings(p netip.Prefix) []string {
	switch {
	case !IsPublic(p) && p.Addr().IsPrivate():
		return nil
	case !IsPublic(p):
		return []string{fmt.Sprintf("subnet %s is carriers' shared address space (%s): it can clash with your provider's or a VPN's", p, sharedRange)}
	}
	return []string{fmt.Sprintf("subnet %s is not a private range: guests and this host cannot reach the real owners of its addresses", p)}
}

// Broadcast returns the last address of a prefix.
func Broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

// Gateway returns the host's address in a network: the one wanted, or with ""
// the first of the subnet. One that cannot be it gives mvm.ErrInvalid.
func Gateway(p netip.Prefix, want string) (netip.Addr, error) {
	first := p.Masked().Addr().Next()
	if want == "" {
		return first, nil
	}
	ip, err := netip.ParseAddr(want)
	var why string
	switch {
	case err != nil || !ip.Is4():
		why = "is not an IPv4 address"
	case !p.Contains(ip):
		why = "is outside the subnet " + p.String()
	case ip == p.Masked().Addr():
		why = "is the network address of " + p.String()
	case ip == Broadcast(p):
		why = "is the broadcast address of " + p.String()
	default:
		return ip, nil
	}
	return netip.Addr{}, mvm.Errorf(mvm.ErrInvalid, "gateway %s %s", mvm.Quote(clip(want)), why).
		WithHint("use an address such as %s, or leave it out", first)
}

// FreeIP returns the lowest address of the subnet that a guest can have:
// neither network, gateway nor broadcast address, nor taken. A full subnet
// gives mvm.ErrUnavailable.
func FreeIP(p netip.Prefix, gateway netip.Addr, taken []netip.Addr) (netip.Addr, error) {
	used := make(map[netip.Addr]bool, len(taken)+1)
	for _, a := range taken {
		used[a] = true
	}
	used[gateway] = true
	last := Broadcast(p)
	for a := p.Masked().Addr().Next(); a.Less(last); a = a.Next() {
		if !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, mvm.Errorf(mvm.ErrUnavailable, "subnet %s is full: all %d addresses for guests are taken", p, guests(p)).
		WithHint("remove VMs of this network, or create a network with a larger subnet")
}

// guests says how many guests a subnet has room for.
func guests(p netip.Prefix) int { return 1<<(32-p.Bits()) - 3 }

// CheckIP says whether a guest can have an address: mvm.ErrInvalid where it
// never can, mvm.ErrExists where another has it.
func CheckIP(p netip.Prefix, gateway netip.Addr, taken []netip.Addr, ip netip.Addr) error {
	kind, why := mvm.ErrInvalid, ""
	switch {
	case !ip.Is4():
		why = "is not an IPv4 address"
	case !p.Contains(ip):
		why = "is outside the subnet " + p.String()
	case ip == gateway:
		why = "is the gateway of " + p.String()
	case ip == p.Masked().Addr():
		why = "is the network address of " + p.String()
	case ip == Broadcast(p):
		why = "is the broadcast address of " + p.String()
	default:
		for _, t := range taken {
			if t == ip {
				kind, why = mvm.ErrExists, "is taken by another VM"
			}
		}
		if why == "" {
			return nil
		}
	}
	e := mvm.Errorf(kind, "address %s %s", ip, why)
	if free, err := FreeIP(p, gateway, taken); err == nil {
		return e.WithHint("%s is free; without an address given, a free one is chosen", free)
	}
	return e.WithHint("leave the address out, so that a free one is chosen")
}

// Overlapping returns the first prefix of taken that shares addresses with p,
// and whether there is one. Routes shorter than /8 do not count: they stand for
// 'everything else', as 0.0.0.0/0 and the halves that VPNs set do.
func Overlapping(p netip.Prefix, taken []netip.Prefix) (netip.Prefix, bool) {
	for _, t := range taken {
		if t.IsValid() && t.Bits() >= minBits && t.Overlaps(p) {
			return t, true
		}
	}
	return netip.Prefix{}, false
}

// FreeSubnet proposes a subnet that overlaps none of taken (other networks and
// the host's routes): the preferred one, if valid, then 172.27.0.0/24, 172.27.1.0/24
// and so on up to 172.31.255.0/24, then 10.64.0.0/24 up to 10.127.255.0/24. When
// all are taken it gives mvm.ErrUnavailable.
func FreeSubnet(preferred netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	if preferred.IsValid() {
		if _, clash := Overlapping(preferred, taken); !clash {
			return preferred, nil
		}
	}
	for _, pool := range [...]struct{ first, from, to byte }{{172, 27, 31}, {10, 64, 127}} {
		for b := int(pool.from); b <= int(pool.to); b++ {
			for c := range 256 {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{pool.first, byte(b), byte(c), 0}), 24)
				if _, clash := Overlapping(p, taken); !clash {
					return p, nil
				}
			}
		}
	}
	return netip.Prefix{}, mvm.Errorf(mvm.ErrUnavailable, "no free private /24 subnet was found").
		WithHint("name one with --subnet, such as 192.168.77.0/24")
}
