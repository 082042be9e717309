package linux

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

// foreign are programs whose rules drop what they do not know, and where they let
// others put rules.
var foreignPrograms = []struct {
	program, rules string
	places         []string
	input          bool // they drop what is sent to the host, too
}{
	{"Docker", nettest.DockerRules, []string{"DOCKER-USER"}, false},
	{"ufw", nettest.UFWRules, []string{"ufw-user-forward", "ufw-user-input"}, true},
	{"iptables", nettest.PolicyRules, []string{"FORWARD", "INPUT"}, true},
	{"a last rule", nettest.RejectRules, []string{"FORWARD", "INPUT"}, true},
}

// Guests get out, and in, where other programs drop what they do not know, by rules at
// the places of these; what our own rules drop stays dropped; and nothing is left.
func TestPacketsBesideOthers(t *testing.T) {
	for _, c := range foreignPrograms {
		t.Run(c.program, func(t *testing.T) {
			onBackends(t, func(t *testing.T, h *nettest.RealHost) { besideOthers(t, h, c.rules, c.places, c.input) })
		})
	}
}

func besideOthers(t *testing.T, h *nettest.RealHost, rules string, places []string, input bool) {
	out := nettest.Outside(t, h.Namespace)
	outside := out.ServePeer(nettest.OutsideAddr.String() + ":80")
	h.Restore(rules)
	h.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")
	before := rulesOfAll(h)
	red, blue := nettest.SpecOf("red", "172.27.0.0/24"), nettest.SpecOf("blue", "172.27.1.0/24")
	red.Published, red.Loopback = true, true
	mustEnsure(t, h, red)
	mustEnsure(t, h, blue)
	tap, tap2 := nettest.TapOf("vm1", red, "172.27.0.2"), nettest.TapOf("vm2", blue, "172.27.1.2")
	tap.Publish = []network.Publish{{Protocol: "tcp", HostPort: 8080, GuestPort: 80}}
	nc := nettest.NoCloudOf("vm1", red, "172.27.0.2", 8001)
	if err := errors.Join(h.AddTap(t.Context(), tap), h.AddTap(t.Context(), tap2), h.AllowNoCloud(t.Context(), nc)); err != nil {
		t.Fatal(err)
	}
	guest, other := nettest.VM(t, h.Namespace, tap, red), nettest.VM(t, h.Namespace, tap2, blue)
	guest.ServePeer("172.27.0.2:80")
	h.ServePeer("172.27.0.1:8001")
	h.ServePeer("0.0.0.0:22")
	h.ServePeer("0.0.0.0:8002")
	check := func(when string) {
		t.Helper()
		wantPeer(t, when+": to outside", guest, outside, nettest.HostAddr.String())
		wantPeer(t, when+": from outside to a published port", out, nettest.HostAddr.String()+":8080", nettest.OutsideAddr.String())
		wantPeer(t, when+": to its NoCloud server", guest, "172.27.0.1:8001", "172.27.0.2")
		wantPeer(t, when+": from another network to a published port", other, nettest.HostAddr.String()+":8080", "172.27.0.1")
		wantPeer(t, when+": to another network", guest, "172.27.1.2:80", "")
		wantPeer(t, when+": to another service of the host", guest, "172.27.0.1:22", "")
		wantPeer(t, when+": another guest to the NoCloud server", other, "172.27.0.1:8001", "")
	}
	other.ServePeer("172.27.1.2:80")
	check("made")
	wantPassages(t, h, red, places, true)
	if changes, err := h.EnsureNetwork(t.Context(), red); err != nil || len(changes) > 0 {
		t.Errorf("ensured again: %v, %v", changes, err)
	}

	// Others come first by now, as Docker does when it starts anew.
	if places[0] != "FORWARD" {
		h.Run("iptables", "-I", "FORWARD", "-j", places[0])
		wantPeer(t, "others come first: to another network", guest, "172.27.1.2:80", "")
		h.Run("iptables", "-D", "FORWARD", "1")
	}

	// They begin anew without ours.
	for _, line := range strings.Split(h.Run("iptables-save", "-t", "filter"), "\n") {
		if strings.HasPrefix(line, "-A ") && strings.Contains(line, ":passage_") {
			h.Run("iptables", append([]string{"-D"}, xtSplit(line)[1:]...)...)
		}
	}
	wantPeer(t, "without the passage: to outside", guest, outside, "")
	if input {
		wantPeer(t, "without the passage: to its NoCloud server", guest, "172.27.0.1:8001", "")
	}
	wantPassages(t, h, red, places, false)
	mustEnsure(t, h, red)
	mustEnsure(t, h, blue)
	check("mended")
	if err := errors.Join(h.RemoveNoCloud(t.Context(), nc), h.RemoveTap(t.Context(), tap), h.RemoveNetwork(t.Context(), blue), h.RemoveTap(t.Context(), tap2), h.RemoveNetwork(t.Context(), red)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, rulesOfAll(h)); diff != "" {
		t.Errorf("before and after:\n%s", diff)
	}
}

func wantPassages(t *testing.T, h *nettest.RealHost, s network.Spec, places []string, open bool) {
	t.Helper()
	o, err := h.Observe(t.Context(), s)
	if err != nil || o.Right != open {
		t.Errorf("right is %v, %v", o.Right, err)
	}
	var got []string
	for _, p := range o.Passages {
		got = append(got, strings.TrimPrefix(p.Place, "iptables chain "))
		if p.Open != open || !p.Ours || p.Removed != 0 || (p.Added == 0) != open || (p.Kept > 0) != open {
			t.Errorf("passage %+v, want it open: %v", p, open)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, places) {
		t.Errorf("passages are at %q, want %q", got, places)
	}
}

// Rules of nftables that drop are their owner's to change; we say so.
func TestPassageThroughNFTables(t *testing.T) {
	for name, tc := range map[string]struct {
		chain string
		drops bool
	}{
		"policy":         {"add chain inet site forward { type filter hook forward priority 0; policy drop; }", true},
		"last rule":      {"add chain inet site forward { type filter hook forward priority 0; }; add rule inet site forward ct state established accept; add rule inet site forward counter reject", true},
		"drops one port": {"add chain inet site forward { type filter hook forward priority 0; }; add rule inet site forward tcp dport 25 drop", false},
	} {
		t.Run(name, func(t *testing.T) { passageThroughNFTables(t, tc.chain, tc.drops) })
	}
}

func passageThroughNFTables(t *testing.T, chain string, drops bool) {
	onBackends(t, func(t *testing.T, h *nettest.RealHost) {
		h.Run("nft", "add table inet site; "+chain)
		red := nettest.SpecOf("red", "172.27.0.0/24")
		before := h.Run("nft", "list", "table", "inet", "site")
		mustEnsure(t, h, red)
		o, err := h.Observe(t.Context(), red)
		if !drops && (err != nil || len(o.Passages) > 0) {
			t.Errorf("%+v, %v", o.Passages, err)
		}
		if drops && (err != nil || !o.Right || len(o.Passages) != 1 || o.Passages[0].Open || o.Passages[0].Ours || !strings.Contains(o.Passages[0].Place, "chain forward of table inet site")) {
			t.Errorf("%+v, %v", o.Passages, err)
		}
		if after := h.Run("nft", "list", "table", "inet", "site"); after != before {
			t.Errorf("it was changed:\n%s", cmp.Diff(before, after))
		}
	})
}

// Where the rules of others are iptables-legacy's, so are ours beside them.
func TestPassageThroughLegacy(t *testing.T) {
	legacyFirst(t)
	for _, c := range foreignPrograms[:3] {
		t.Run(c.program, func(t *testing.T) {
			for _, b := range []network.Backend{network.NFTables, network.IPTables} {
				t.Run(string(b), func(t *testing.T) {
					h := newHost(t, b)
					h.Run("iptables", "-t", "nat", "-L") // a table of it stays when it was looked at once
					besideOthers(t, h, c.rules, c.places, c.input)
				})
			}
		})
	}
}

// legacyFirst makes iptables-legacy the iptables of a test.
func legacyFirst(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, tool := range []string{"iptables", "iptables-save", "iptables-restore"} {
		legacy, err := exec.LookPath("/usr/sbin/" + strings.Replace(tool, "iptables", "iptables-legacy", 1))
		if err != nil {
			t.Skip("needs iptables-legacy")
		}
		if err := os.Symlink(legacy, filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}
