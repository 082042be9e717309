package network

import (
	"errors"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

func TestBridgeName(t *testing.T) {
	for in, want := range map[string]string{"default": "mvm-default", "a": "mvm-a", "elevenchars": "mvm-elevenchars"} {
		if got := BridgeName(in); got != want {
			t.Errorf("BridgeName(%q) = %q, want %q", in, got, want)
		}
	}
	one, two := BridgeName("production-east"), BridgeName("production-west")
	if one == two || len(one) != 15 || !strings.HasPrefix(one, "mvm-prod-") {
		t.Errorf("long names give %q and %q", one, two)
	}
}

// Names and addresses are stored, so the same input has to give the same
// output in every version.
func TestNamesStayTheSame(t *testing.T) {
	mac, err := GuestMAC("02:FC", "0123456789abcdef", 0)
	for got, want := range map[string]string{
		TapName("0123456789abcdef"):     "mvmaa773024c2f8",
		BridgeName("production-east"):   "mvm-prod-20df5c",
		BridgeMAC("network-1").String(): "02:fd:11:59:4c:d2",
		mac.String():                    "02:fc:b4:eb:dd:6b",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func TestGuestMAC(t *testing.T) {
	seen := map[string]bool{}
	for _, vm := range []string{"a", "b", "a0", ""} {
		for n := range 3 {
			mac, err := GuestMAC("02:FC", vm, n)
			if err != nil || seen[mac.String()] || !strings.HasPrefix(mac.String(), "02:fc:") {
				t.Errorf("GuestMAC(%q, %d) = %v, %v", vm, n, mac, err)
			}
			seen[mac.String()] = true
		}
	}
	for _, bad := range []string{"", "0", "02:", "02FC", "02:FC:", "01:00", "02-FC", "zz:zz", "02:fc:00:00:00", "02:f:c0"} {
		if mac, err := GuestMAC(bad, "vm", 0); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("GuestMAC(%q) = %v, %v", bad, mac, err)
		}
	}
}

func TestAlias(t *testing.T) {
	if id, ok := AliasID(Alias("x")); id != "x" || !ok {
		t.Errorf("got %q, %v", id, ok)
	}
	for _, foreign := range []string{"", "mvm:", "mvm", "other:x"} {
		if _, ok := AliasID(foreign); ok {
			t.Errorf("alias %q passes as ours", foreign)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add("default", "02:FC", "vm", 0)
	f.Add("a-very-long-network-name", "FE", "", -1)
	f.Fuzz(func(t *testing.T, network, prefix, vm string, n int) {
		if name := TapName(vm); !validIfName(name) || len(name) != 15 {
			t.Errorf("TapName(%q) = %q", vm, name)
		}
		if mvm.ValidateName("network", network) == nil && !validIfName(BridgeName(network)) {
			t.Errorf("BridgeName(%q) = %q", network, BridgeName(network))
		}
		mac, err := GuestMAC(prefix, vm, n)
		if err != nil {
			return
		}
		if parsed, err := mvm.ParseGuestMAC(mac.String()); err != nil || !strings.HasPrefix(parsed.String(), strings.ToLower(prefix)+":") {
			t.Errorf("GuestMAC(%q, %q, %d) = %s: %v", prefix, vm, n, mac, err)
		}
	})
}
