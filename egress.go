package mvm

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// DNSDomain is the domain of the VMs of a network: web.mvm is the VM web. It is
// answered for inside the network only, and never asked for elsewhere.
const DNSDomain = "mvm"

// The words for what a VM may reach outside its network that is not a list.
const (
	EgressAllow = "allow" // everything, which is what a nil list says
	EgressDeny  = "deny"  // nothing, which is what an empty list says
)

// maxEgress bounds a VM's list: each entry is a rule, or a name to be resolved.
const maxEgress = 256

const egressHint = "write allow, deny, or a list such as 192.0.2.0/24,example.com,*.example.org"

// ParseEgress reads what a VM may reach outside its network: allow (nil), deny (an
// empty list), or IPv4 networks, addresses and DNS names with commas between them.
func ParseEgress(s string) ([]string, error) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case EgressAllow:
		return nil, nil
	case EgressDeny:
		return []string{}, nil
	case "":
		return nil, Errorf(ErrInvalid, "it is not said what the VM may reach").WithHint(egressHint)
	}
	return CheckEgress(strings.Split(s, ","))
}

// CheckEgress returns a list as it is kept: sorted, each entry once, networks with
// their prefix length and names in lower case. nil stays nil.
func CheckEgress(list []string) ([]string, error) {
	if list == nil {
		return nil, nil
	}
	out := make([]string, 0, len(list))
	for _, entry := range list {
		kept, err := egressEntry(strings.TrimSuffix(strings.TrimSpace(entry), "."))
		if err != nil {
			return nil, err
		}
		out = append(out, kept)
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) > maxEgress {
		return nil, Errorf(ErrInvalid, "%d entries in a list of what a VM may reach; at most %d are allowed", len(out), maxEgress).
			WithHint("use larger networks, or names such as *.example.org")
	}
	return out, nil
}

func egressEntry(s string) (string, error) {
	refuse := func(kind Kind, why, hint string) (string, error) {
		return "", Errorf(kind, "%s in a list of what a VM may reach %s", Quote(clip(s)), why).WithHint("%s", hint)
	}
	switch s {
	case "":
		return refuse(ErrInvalid, "is nothing", egressHint)
	case EgressAllow, EgressDeny:
		return refuse(ErrInvalid, "stands beside others", "write it alone, or leave it out")
	}
	if strings.Contains(s, ":") {
		return refuse(ErrUnsupported, "is IPv6, which networks do not have yet, or has a port", "name IPv4 networks or names without ports")
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return refuse(ErrInvalid, "is not an IPv4 network in CIDR notation", "write it like 192.0.2.0/24")
		case p != p.Masked():
			return refuse(ErrInvalid, "has host bits set", "use "+p.Masked().String()+" for the network, or "+p.Addr().String()+" for the address")
		}
		return p.String(), nil
	}
	if last := s[strings.LastIndexByte(s, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return refuse(ErrInvalid, "is neither an IPv4 address nor a DNS name", egressHint)
		}
		return netip.PrefixFrom(a, a.BitLen()).String(), nil
	}
	name := strings.ToLower(s)
	if why := wrongDNSName(strings.TrimPrefix(name, "*.")); why != "" {
		return refuse(ErrInvalid, why, "write a name such as example.com, or *.example.com for all below it")
	}
	if name == DNSDomain || strings.HasSuffix(name, "."+DNSDomain) {
		return refuse(ErrInvalid, "is a VM's, and no VM of its network is outside", "leave it out; see --isolate to keep VMs of one network apart")
	}
	return name, nil
}

// wrongDNSName says what keeps a name from being a host's (RFC 1123, with the
// underscore that is in use).
func wrongDNSName(name string) string {
	if len(name) > 253 {
		return "has " + strconv.Itoa(len(name)) + " characters; a DNS name has at most 253"
	}
	for label := range strings.SplitSeq(name, ".") {
		odd := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' }
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, odd) {
			return "is not a DNS name"
		}
	}
	return ""
}

// SplitEgress returns the networks and the names of a list that was checked.
func SplitEgress(list []string) (prefixes []netip.Prefix, names []string) {
	for _, entry := range list {
		if p, err := netip.ParsePrefix(entry); err == nil {
			prefixes = append(prefixes, p)
		} else {
			names = append(names, entry)
		}
	}
	return prefixes, names
}

// EgressText is a list as it is typed.
func EgressText(list []string) string {
	switch {
	case list == nil:
		return EgressAllow
	case len(list) == 0:
		return EgressDeny
	}
	return strings.Join(list, ",")
}
