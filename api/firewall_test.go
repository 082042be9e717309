package api

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// hasIPTables makes the programs of iptables look as if they were installed, for
// this test; nothing of them is run but to see that they are there.
func hasIPTables(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "iptables-restore"), []byte("#!/bin/sh\n"), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func (w *world) setBackend(m *Client, b network.Backend) error {
	_, err := m.Config.Set(w.t.Context(), firewallCategory, firewallKey, string(b))
	return err
}

// Setting the backend moves the rules of all networks and of the VMs that run.
func TestFirewallBackendMovesRules(t *testing.T) {
	hasIPTables(t)
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	if err := w.setBackend(m, network.IPTables); err != nil { // nothing to move yet
		t.Fatal(err)
	}
	w.makeNetwork(m, NetworkCreateInput{Name: "lab"})
	w.makeNetwork(m, NetworkCreateInput{Name: "other"})
	vm, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NetworkName: "lab", Publish: []string{"18080:80"}})
	if err != nil {
		t.Fatal(err)
	}
	want := func(when string, b network.Backend) {
		t.Helper()
		for _, table := range []string{"mvm-lab", "mvm-other", vm.VMs[0].TapDevice} {
			if got := w.net.RulesIn(table); got != b {
				t.Errorf("%s: the rules of %s are in %q, want %q", when, table, got, b)
			}
		}
		inspected, err := m.Network.Inspect(ctx, netSel("lab"))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range inspected.Rules {
			if inIPTables := strings.Contains(*r.CommandString, " -j "); inIPTables != (b == network.IPTables) {
				t.Errorf("%s: a rule reads %q", when, *r.CommandString)
			}
		}
	}
	want("made", network.IPTables)
	if err := w.setBackend(m, network.NFTables); err != nil {
		t.Fatal(err)
	}
	want("set", network.NFTables)
	st, err := m.core.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := st.ListFirewallRules(ctx, "")
	if err != nil || len(rows) == 0 {
		t.Fatal(len(rows), err)
	}
	for _, r := range rows {
		if strings.Contains(*r.CommandString, " -j ") || r.LastVerifiedAt == nil {
			t.Errorf("stored is %q, verified at %v", *r.CommandString, r.LastVerifiedAt)
		}
	}
	if err := w.setBackend(m, network.IPTables); err != nil {
		t.Fatal(err)
	}
	want("set back", network.IPTables)
	if n, err := m.Config.Reset(ctx, ConfigResetInput{All: true}); err != nil || n != 1 {
		t.Errorf("reset: %d, %v", n, err)
	}
	want("reset", network.NFTables)

	w.root = false
	refused(t, w.setBackend(m, network.IPTables), mvm.ErrPrivilege, "moving the firewall rules")
	want("refused", network.NFTables)
}

// Wherever moving is interrupted, the next command ends it.
func TestFirewallMoveIsFinished(t *testing.T) {
	hasIPTables(t)
	for _, at := range []string{"reserve:after", "revert:firewall:before", "revert:firewall:after", "finish:before"} {
		w := newWorld(t)
		w.makeNetwork(w.open(), NetworkCreateInput{Name: "lab"})
		if err := w.setBackend(w.faulty("error:"+opFirewallMove+":"+at), network.IPTables); err == nil {
			t.Errorf("%s: no error", at)
		}
		if _, err := w.open().Network.ListAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.net.RulesIn("mvm-lab"); got != network.IPTables {
			t.Errorf("%s: the rules are in %q", at, got)
		}
	}
}
