package mvm

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParseEgress(t *testing.T) {
	for in, want := range map[string]string{
		"allow": "allow", "Deny": "deny", "10.0.0.0/8": "10.0.0.0/8", "0.0.0.0/0": "0.0.0.0/0",
		"192.0.2.7": "192.0.2.7/32", " example.com. , *.Example.ORG,example.com": "*.example.org,example.com",
		"_dns.resolver.arpa,a-b.c3": "_dns.resolver.arpa,a-b.c3", "localhost": "localhost", "1.2.3.0/24,x.org": "1.2.3.0/24,x.org",
	} {
		got, err := ParseEgress(in)
		if err != nil || EgressText(got) != want {
			t.Errorf("%q: %q, %v; want %q", in, EgressText(got), err, want)
		}
		again, err := CheckEgress(got)
		if err != nil || !slices.Equal(again, got) || (again == nil) != (got == nil) {
			t.Errorf("%q is %q when checked again, %v", in, again, err)
		}
	}
	for in, want := range map[string]struct {
		kind       Kind
		says, hint string
	}{
		"":                                {ErrInvalid, "not said", "allow, deny"},
		"a.org,,b.org":                    {ErrInvalid, "is nothing", "example.com"},
		"allow,a.org":                     {ErrInvalid, "beside others", "alone"},
		"10.0.0.1/8":                      {ErrInvalid, "host bits", "10.0.0.0/8"},
		"10.0.0.0/33":                     {ErrInvalid, "CIDR", "192.0.2.0/24"},
		"10.0.0.256":                      {ErrInvalid, "neither", "allow, deny"},
		"10.0.0":                          {ErrInvalid, "neither", "allow, deny"},
		"2001:db8::/32":                   {ErrUnsupported, "IPv6", "IPv4"},
		"example.com:443":                 {ErrUnsupported, "port", "without ports"},
		"*":                               {ErrInvalid, "not a DNS name", "*.example.com"},
		"a.*.org":                         {ErrInvalid, "not a DNS name", "*.example.com"},
		"-a.org":                          {ErrInvalid, "not a DNS name", "example.com"},
		"a..org":                          {ErrInvalid, "not a DNS name", "example.com"},
		"http://a.org":                    {ErrUnsupported, "port", "names"},
		"web.mvm":                         {ErrInvalid, "is a VM's", "--isolate"},
		"b\x1b[31m.org":                   {ErrInvalid, `\x1b`, "example.com"},
		strings.Repeat("a", 64) + ".org":  {ErrInvalid, "not a DNS name", "example.com"},
		strings.Repeat("a.", 130) + "org": {ErrInvalid, "253", "example.com"},
	} {
		_, err := ParseEgress(in)
		if !errors.Is(err, want.kind) || !strings.Contains(err.Error(), want.says) || !strings.Contains(HintOf(err), want.hint) {
			t.Errorf("%q: %v (hint %q), want %q, %q", in, err, HintOf(err), want.says, want.hint)
		}
	}
	var many []string
	for i := range maxEgress + 1 {
		many = append(many, "n"+strconv.Itoa(i)+".org")
	}
	if _, err := CheckEgress(many); !errors.Is(err, ErrInvalid) {
		t.Errorf("%d entries: %v", len(many), err)
	}
	prefixes, names := SplitEgress([]string{"*.a.org", "10.0.0.0/8", "b.org"})
	if len(prefixes) != 1 || prefixes[0].String() != "10.0.0.0/8" || !slices.Equal(names, []string{"*.a.org", "b.org"}) {
		t.Errorf("split are %v and %v", prefixes, names)
	}
}

func FuzzParseEgress(f *testing.F) {
	for _, s := range []string{"allow", "10.0.0.0/8,a.org", "*.x", "1.2.3.4", "::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseEgress(s)
		if err != nil {
			if HintOf(err) == "" || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("error %q, hint %q", err, HintOf(err))
			}
			return
		}
		again, err := ParseEgress(EgressText(list))
		if err != nil || !slices.Equal(again, list) {
			t.Errorf("%q is kept as %q, read again %q, %v", s, list, again, err)
		}
		prefixes, names := SplitEgress(list)
		if len(prefixes)+len(names) != len(list) {
			t.Errorf("%q splits into %v and %v", list, prefixes, names)
		}
	})
}
