package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/testenv"
)

// newBareMachine makes a machine without images, on which no VM can run.
func newBareMachine(t *testing.T) *machine {
	t.Helper()
	testenv.Require(t, "root", "netns", "nft", "ip")
	return &machine{t: t, bin: binary(t), cache: t.TempDir(), config: t.TempDir(), ns: nettest.NewNamespace(t)}
}

// plumbing is what networks are made of, as the tools of others show it.
func (m *machine) plumbing() string {
	m.t.Helper()
	r := m.run("network", "ls", "--json") // first: any command ends what one that died had begun
	if r.code != 0 {
		m.t.Fatalf("network ls: %s", r.stderr)
	}
	var nets []struct{ Name, Subnet string }
	if err := json.Unmarshal([]byte(r.stdout), &nets); err != nil {
		m.t.Fatal(err)
	}
	var b strings.Builder
	for _, n := range nets {
		b.WriteString("network " + n.Name + " " + n.Subnet + "\n")
	}
	links := ""
	for line := range strings.Lines(m.ns.Run("ip", "-br", "link")) {
		links += strings.Fields(line)[0] + "\n"
	}
	return b.String() + links + m.ns.Run("ip", "-4", "route") + m.ns.Run("nft", "list", "ruleset")
}

// TestNetworkDiesAnywhere kills `network create` and `network rm` before and after
// each step. The next command finds a network, or none, and nothing in between.
func TestNetworkDiesAnywhere(t *testing.T) {
	m := newBareMachine(t)
	m.must("network", "create", "other")
	without := m.plumbing()
	die := func(point string, args ...string) {
		t.Helper()
		m.env = []string{"MVM_FAULT=kill:" + point}
		r := m.run(args...)
		m.env = nil
		if r.code != -1 {
			t.Errorf("%s: exit %d, want it killed: %s", point, r.code, r.stderr)
		}
		if got := m.plumbing(); !strings.HasSuffix(point, "commit:after") {
			if diff := cmp.Diff(without, got); diff != "" {
				t.Errorf("%s:\n%s", point, diff)
			}
		}
	}
	for _, point := range []string{"reserve:after", "bridge:before", "bridge:after", "commit:before"} {
		die("network.create:"+point, "network", "create", "lab", "--subnet", "10.77.0.0/24")
	}
	die("network.create:commit:after", "network", "create", "lab", "--subnet", "10.77.0.0/24")
	if got := m.plumbing(); !strings.Contains(got, "table ip mvm-lab") || !strings.Contains(got, "network lab 10.77.0.0/24") {
		t.Errorf("a network that was made is not there:\n%s", got)
	}
	for _, point := range []string{"reserve:after", "revert:bridge:before", "revert:bridge:after", "finish:before", "finish:after"} {
		m.run("network", "create", "lab")
		die("network.remove:"+point, "network", "rm", "lab")
	}
}

// Networks are put right after somebody has meddled, and after a reboot, which
// leaves the database alone; rules of others stay as they are.
func TestNetworkSyncMends(t *testing.T) {
	m := newBareMachine(t)
	m.ns.Run("nft", "add table ip theirs; add chain ip theirs c { type filter hook forward priority 0 ; }; add rule ip theirs c counter accept comment \"theirs\"")
	for _, name := range []string{"one", "two", "three-with-a-long-name"} {
		m.must("network", "create", name)
	}
	before := m.plumbing()
	m.ns.Run("ip", "link", "del", "mvm-one")
	m.ns.Run("nft", `flush table ip mvm-two; insert rule ip mvm-one MVM-FORWARD accept comment "mvm:x"`)
	var done map[string]struct{ Added, Removed, Kept int }
	if err := json.Unmarshal([]byte(m.must("network", "sync", "--json")), &done); err != nil {
		t.Fatal(err)
	}
	if done["one"].Removed != 1 || done["one"].Kept == 0 || done["two"].Added == 0 || done["two"].Kept != 0 || done["three-with-a-long-name"].Added != 0 {
		t.Errorf("sync says %+v", done)
	}
	if diff := cmp.Diff(sorted(before), sorted(m.plumbing())); diff != "" {
		t.Errorf("not as before:\n%s", diff)
	}
	m.ns = nettest.NewNamespace(t) // as after a reboot
	m.must("network", "sync")
	theirs := strings.Index(before, "table ip theirs")
	end := theirs + strings.Index(before[theirs:], "\n}\n") + 3
	if diff := cmp.Diff(sorted(before[:theirs]+before[end:]), sorted(m.plumbing())); diff != "" {
		t.Errorf("not as before the reboot:\n%s", diff)
	}
	m.must("cache", "prune", "network", "--all")
	if got := m.plumbing(); got != "lo\n" {
		t.Errorf("left after pruning:\n%s", got)
	}
}

// sorted sorts lines: a table that was made anew stands elsewhere in the list.
func sorted(s string) []string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return lines
}
