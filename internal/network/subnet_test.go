package network

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

func TestValidateSubnet(t *testing.T) {
	for _, c := range []struct {
		in    string
		kind  mvm.Kind // "" is good
		says  string   // in the error or the warning
		hints string
	}{
		{"172.27.0.0/24", "", "", ""},
		{"10.0.0.0/8", "", "", ""},
		{"192.168.1.4/30", "", "", ""},
		{"100.64.0.0/16", "", "carriers", ""},
		{"8.8.8.0/24", "", "not a private range", ""},
		{"172.0.0.0/8", "", "not a private range", ""},
		{"172.27.0.0/99", mvm.ErrInvalid, "prefix length", "172.27.0.0/24"},
		{"172.27.0.0/-1", mvm.ErrInvalid, "prefix length", "172.27.0.0/24"},
		{"172.27.0.0/", mvm.ErrInvalid, "prefix length", "172.27.0.0/24"},
		{"172.27.0.0/024", mvm.ErrInvalid, "prefix length", "172.27.0.0/24"},
		{"172.27.0.0/31", mvm.ErrInvalid, "too small", "172.27.0.0/24"},
		{"172.27.0.1/32", mvm.ErrInvalid, "too small", "172.27.0.0/24"},
		{"172.27.0.5/24", mvm.ErrInvalid, "host bits", "use 172.27.0.0/24"},
		{"172.27.0.5", mvm.ErrInvalid, "no prefix length", "172.27.0.0/24"},
		{"10.0.0.0/7", mvm.ErrInvalid, "too large", "8"},
		{"0.0.0.0/0", mvm.ErrInvalid, "too large", "8"},
		{"fd00::/64", mvm.ErrUnsupported, "IPv6", "IPv4"},
		{"::ffff:10.0.0.0/120", mvm.ErrUnsupported, "IPv6", "IPv4"},
		{"127.0.0.0/24", mvm.ErrInvalid, "loopback", "172.27"},
		{"169.254.1.0/24", mvm.ErrInvalid, "metadata", "172.27"},
		{"224.0.0.0/8", mvm.ErrInvalid, "multicast", "172.27"},
		{"0.1.0.0/16", mvm.ErrInvalid, "this network", "172.27"},
		{"255.255.255.0/24", mvm.ErrInvalid, "reserved", "172.27"},
		{"", mvm.ErrInvalid, "CIDR", "172.27.0.0/24"},
		{"default", mvm.ErrInvalid, "CIDR", "172.27.0.0/24"},
		{"172.27.0/24", mvm.ErrInvalid, "CIDR", "172.27.0.0/24"},
		{"172.27.0.0/24\x1b[31m", mvm.ErrInvalid, `\x1b`, "172.27.0.0/24"},
		{strings.Repeat("1", 500), mvm.ErrInvalid, "...", "172.27.0.0/24"},
	} {
		p, warnings, err := ValidateSubnet(c.in)
		if c.kind != "" {
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || !strings.Contains(mvm.HintOf(err), c.hints) {
				t.Errorf("%q: got %v (hint %q), want %q with %q and hint %q", c.in, err, mvm.HintOf(err), c.kind, c.says, c.hints)
			}
			continue
		}
		if err != nil || p.String() != c.in {
			t.Errorf("%q: got %v, %v", c.in, p, err)
		}
		if got := strings.Join(warnings, "\n"); (c.says == "") != (got == "") || !strings.Contains(got, c.says) {
			t.Errorf("%q: warnings %q, want %q", c.in, got, c.says)
		}
	}
}

func TestGateway(t *testing.T) {
	p := netip.MustParsePrefix("10.1.2.0/28")
	for want, got := range map[string]string{"": "10.1.2.1", "10.1.2.1": "10.1.2.1", "10.1.2.14": "10.1.2.14"} {
		if ip, err := Gateway(p, want); err != nil || ip.String() != got {
			t.Errorf("Gateway(%q) = %v, %v", want, ip, err)
		}
	}
	for want, says := range map[string]string{
		"10.1.2.0": "network address", "10.1.2.15": "broadcast", "10.1.2.16": "outside", "10.1.1.255": "outside",
		"x": "not an IPv4", "fd00::1": "not an IPv4", "10.1.2.1/28": "not an IPv4", "::ffff:10.1.2.1": "not an IPv4",
	} {
		_, err := Gateway(p, want)
		if !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(err.Error(), says) || !strings.Contains(mvm.HintOf(err), "10.1.2.1") {
			t.Errorf("Gateway(%q): %v, hint %q; want %q", want, err, mvm.HintOf(err), says)
		}
	}
}

// A subnet is given out to the last address, each once, and then is full.
func TestFreeIPGivesEveryAddressOnce(t *testing.T) {
	for _, c := range []struct {
		subnet, gateway string
		n               int
	}{
		{"10.0.0.0/30", "10.0.0.1", 1}, {"10.0.0.0/30", "10.0.0.2", 1},
		{"172.27.0.0/28", "172.27.0.7", 13}, {"172.27.4.0/22", "172.27.4.1", 1021},
	} {
		p, gw := netip.MustParsePrefix(c.subnet), netip.MustParseAddr(c.gateway)
		var taken []netip.Addr
		for {
			ip, err := FreeIP(p, gw, taken)
			if err != nil {
				if !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
					t.Errorf("%s: %v", c.subnet, err)
				}
				break
			}
			if err := CheckIP(p, gw, taken, ip); err != nil {
				t.Fatalf("%s: proposed %s: %v", c.subnet, ip, err)
			}
			if len(taken) > 0 && !taken[len(taken)-1].Less(ip) {
				t.Fatalf("%s: %s is not the lowest free address", c.subnet, ip)
			}
			taken = append(taken, ip)
		}
		if len(taken) != c.n {
			t.Errorf("%s: %d addresses given out, want %d", c.subnet, len(taken), c.n)
		}
		freed := taken[len(taken)/2]
		taken[len(taken)/2] = netip.MustParseAddr("192.0.2.1")
		if ip, err := FreeIP(p, gw, taken); err != nil || ip != freed {
			t.Errorf("%s: after %s came free, got %v, %v", c.subnet, freed, ip, err)
		}
	}
}

func TestCheckIP(t *testing.T) {
	p, gw := netip.MustParsePrefix("172.27.0.0/24"), netip.MustParseAddr("172.27.0.1")
	taken := []netip.Addr{netip.MustParseAddr("172.27.0.2")}
	for ip, want := range map[string]struct {
		kind mvm.Kind
		says string
	}{
		"172.27.0.3": {}, "172.27.0.254": {},
		"172.27.0.0": {mvm.ErrInvalid, "network address"}, "172.27.0.1": {mvm.ErrInvalid, "gateway"},
		"172.27.0.255": {mvm.ErrInvalid, "broadcast"}, "172.27.1.2": {mvm.ErrInvalid, "outside"},
		"fd00::2": {mvm.ErrInvalid, "IPv4"}, "172.27.0.2": {mvm.ErrExists, "taken"},
	} {
		err := CheckIP(p, gw, taken, netip.MustParseAddr(ip))
		if want.kind == "" {
			if err != nil {
				t.Errorf("%s: %v", ip, err)
			}
		} else if !errors.Is(err, want.kind) || !strings.Contains(err.Error(), want.says) || !strings.Contains(mvm.HintOf(err), "172.27.0.3") {
			t.Errorf("%s: %v, hint %q; want %q", ip, err, mvm.HintOf(err), want.says)
		}
	}
	if err := CheckIP(p, gw, nil, netip.Addr{}); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("no address: %v", err)
	}
}

func TestFreeSubnet(t *testing.T) {
	prefixes := func(s ...string) (ps []netip.Prefix) {
		for _, p := range s {
			ps = append(ps, netip.MustParsePrefix(p))
		}
		return ps
	}
	for _, c := range []struct {
		preferred string
		taken     []netip.Prefix
		want      string
	}{
		{"", nil, "172.27.0.0/24"},
		{"192.168.7.0/25", nil, "192.168.7.0/25"},
		{"192.168.7.0/25", prefixes("192.168.0.0/16"), "172.27.0.0/24"},
		{"", prefixes("172.27.0.0/24", "172.27.1.128/32"), "172.27.2.0/24"},
		{"", prefixes("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"), "172.27.0.0/24"},
		{"", prefixes("172.27.0.0/16"), "172.28.0.0/24"},
		{"", prefixes("172.16.0.0/12"), "10.64.0.0/24"},
		{"", prefixes("172.16.0.0/12", "fd00::/8", "10.64.0.0/10"), ""},
		{"", []netip.Prefix{{}}, "172.27.0.0/24"},
	} {
		var preferred netip.Prefix
		if c.preferred != "" {
			preferred = netip.MustParsePrefix(c.preferred)
		}
		got, err := FreeSubnet(preferred, c.taken)
		if c.want == "" {
			if !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
				t.Errorf("all taken: %v, %v", got, err)
			}
		} else if err != nil || got.String() != c.want {
			t.Errorf("FreeSubnet(%s, %v) = %v, %v; want %s", c.preferred, c.taken, got, err, c.want)
		}
	}
}

func FuzzValidateSubnet(f *testing.F) {
	for _, s := range []string{"172.27.0.0/24", "10.0.0.0/30", "::/0", "1.2.3.4/99", "0.0.0.0/0", "255.255.255.255/32", "/", "a%b/1"} {
		f.Add(s, "", "172.27.0.9")
	}
	f.Fuzz(func(t *testing.T, cidr, want, ip string) {
		p, _, err := ValidateSubnet(cidr)
		if err != nil {
			if mvm.HintOf(err) == "" || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("error %q, hint %q", err, mvm.HintOf(err))
			}
			return
		}
		gw, err := Gateway(p, want)
		if err != nil {
			if mvm.HintOf(err) == "" || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("error %q, hint %q", err, mvm.HintOf(err))
			}
			gw, _ = Gateway(p, "")
		}
		if err := CheckIP(p, netip.Addr{}, nil, gw); err != nil {
			t.Errorf("gateway %s: %v", gw, err)
		}
		free, err := FreeIP(p, gw, nil)
		if err != nil || CheckIP(p, gw, nil, free) != nil {
			t.Errorf("FreeIP(%s, %s) = %s, %v", p, gw, free, err)
		}
		if a, err := netip.ParseAddr(ip); err == nil && CheckIP(p, gw, nil, a) == nil && (!p.Contains(a) || a == gw) {
			t.Errorf("CheckIP(%s, %s) allows %s", p, gw, a)
		}
		s := Spec{NetworkID: "id", Name: "n", Bridge: "mvm-n", Subnet: p, Gateway: gw, NAT: true}
		if err := s.Validate(); err != nil {
			t.Errorf("spec of %s: %v", p, err)
		}
	})
}

func TestHostClash(t *testing.T) {
	routes := []Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0"}, {Dst: netip.MustParsePrefix("192.168.1.0/24"), Interface: "eth0"},
		{Dst: netip.MustParsePrefix("10.8.0.0/16")}, {Dst: netip.MustParsePrefix("172.27.0.0/24"), Interface: "mvm-red"},
	}
	addrs := []Address{
		{netip.MustParsePrefix("127.0.0.1/8"), "lo"}, {netip.MustParsePrefix("192.168.1.7/24"), "eth0"},
		{netip.MustParsePrefix("10.9.9.9/32"), "wg0"}, {netip.MustParsePrefix("100.100.0.1/4"), "odd0"},
	}
	for subnet, want := range map[string]*Clash{
		"172.28.0.0/24":    nil,
		"192.168.0.0/23":   {addrs[1].Prefix, "eth0"},
		"192.168.1.128/25": {addrs[1].Prefix, "eth0"},
		"10.8.7.0/24":      {routes[2].Dst, ""},
		"10.9.9.0/24":      {addrs[2].Prefix, "wg0"},
		"10.9.8.0/24":      nil,
		"100.100.0.0/24":   {addrs[3].Prefix, "odd0"},
		"172.27.0.0/25":    nil, // of the interface that is left out
	} {
		if diff := cmp.Diff(want, HostClash(netip.MustParsePrefix(subnet), routes, addrs, "mvm-red"), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s:\n%s", subnet, diff)
		}
	}
}

func TestIsPublic(t *testing.T) {
	for subnet, want := range map[string]bool{
		"10.0.0.0/8": false, "172.16.0.0/12": false, "192.168.3.0/24": false, "100.64.0.0/10": false, "100.127.255.0/24": false,
		"172.0.0.0/8": true, "8.8.8.0/24": true, "100.0.0.0/8": true, "192.168.0.0/15": true, "198.51.100.0/24": true,
	} {
		if got := IsPublic(netip.MustParsePrefix(subnet)); got != want {
			t.Errorf("%s is public: %v, want %v", subnet, got, want)
		}
	}
}
