package store_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// grabs are the things of which the world has one: each is wanted by all.
var grabs = []struct {
	what string
	grab func(ctx context.Context, st *store.Store, me string) error
}{
	{"vm name", func(ctx context.Context, st *store.Store, me string) error {
		return st.InsertVM(ctx, &mvm.VMInstanceItem{ID: "name" + me, Name: "web"})
	}},
	{"mac", func(ctx context.Context, st *store.Store, me string) error {
		return st.InsertVM(ctx, &mvm.VMInstanceItem{ID: "mac" + me, Name: "mac" + me, MAC: "02:fc:00:00:00:01"})
	}},
	{"tap", func(ctx context.Context, st *store.Store, me string) error {
		return st.InsertVM(ctx, &mvm.VMInstanceItem{ID: "tap" + me, Name: "tap" + me, TapDevice: "mvm-tap0"})
	}},
	{"network name", func(ctx context.Context, st *store.Store, me string) error {
		return st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "n" + me, Name: "lan", Subnet: "10.1." + me + ".0/24", Bridge: "n" + me})
	}},
	{"subnet", func(ctx context.Context, st *store.Store, me string) error {
		return st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "s" + me, Name: "s" + me, Subnet: "10.2.0.0/24", Bridge: "s" + me})
	}},
	{"overlapping subnet", func(ctx context.Context, st *store.Store, me string) error {
		return st.InsertNetwork(ctx, &mvm.NetworkItem{ID: "o" + me, Name: "o" + me, Subnet: fmt.Sprintf("10.3.0.0/1%s", me), Bridge: "o" + me})
	}},
	{"lease", func(ctx context.Context, st *store.Store, me string) error {
		return st.Tx(ctx, func(tx *store.Tx) error {
			err := tx.UpsertNetwork(ctx, &mvm.NetworkItem{ID: "lease", Name: "lease", Subnet: "192.168.9.0/24", Bridge: "lease"})
			if err != nil {
				return err
			}
			if err := tx.InsertVM(ctx, &mvm.VMInstanceItem{ID: "l" + me, Name: "l" + me}); err != nil {
				return err
			}
			vm := "l" + me
			return tx.InsertLease(ctx, &mvm.NetworkLeaseItem{NetworkID: "lease", IPv4: "192.168.9.2", VMID: &vm})
		})
	}},
	{"claim", func(ctx context.Context, st *store.Store, _ string) error {
		if err := st.InsertVM(ctx, &mvm.VMInstanceItem{ID: "claimed", Name: "claimed", Status: mvm.StatusStopped}); err != nil && mvm.KindOf(err) != mvm.ErrExists {
			return err
		}
		_, err := st.ClaimVM(ctx, "claimed", mvm.VerbStart)
		return err
	}},
}

// grabAll tries for all of them and returns a line for each.
func grabAll(ctx context.Context, st *store.Store, me string) []string {
	var lines []string
	for _, g := range grabs {
		outcome := "won"
		if err := g.grab(ctx, st, me); err != nil {
			outcome = string(mvm.KindOf(err)) + ": " + err.Error()
		}
		lines = append(lines, g.what+" = "+outcome)
	}
	return lines
}

// checkGrabs wants one winner of each thing, and of everybody else the error
// that names it.
func checkGrabs(t *testing.T, outputs []string) {
	t.Helper()
	losers := map[string]string{
		"vm name": `already exists: a VM named "web" exists already`,
		"mac":     `already exists: the MAC address 02:fc:00:00:00:01 is used by VM "mac`,
		"tap":     `already exists: the tap device mvm-tap0 is used by VM "tap`, "network name": `already exists: a network named "lan" exists already`,
		"subnet":             `already exists: the subnet 10.2.0.0/24 is used by network "s`,
		"overlapping subnet": `already exists: the subnet 10.3.0.0/1`,
		"lease":              `already exists: in network lease the address 192.168.9.2 is leased by VM "l`,
		"claim":              `not allowed in this state: cannot start "claimed": it is starting; it has to be stopped, crashed or error`,
	}
	for _, g := range grabs {
		won, lost := 0, 0
		for _, out := range outputs {
			i := slices.IndexFunc(strings.Split(out, "\n"), func(l string) bool { return strings.HasPrefix(l, g.what+" = ") })
			if i < 0 {
				t.Errorf("%s: no outcome in %q", g.what, out)
				continue
			}
			_, outcome, _ := strings.Cut(strings.Split(out, "\n")[i], " = ")
			switch {
			case outcome == "won":
				won++
			case strings.HasPrefix(outcome, losers[g.what]):
				lost++
			default:
				t.Errorf("%s: %s\nwant: %s", g.what, outcome, losers[g.what])
			}
		}
		if won != 1 || lost != len(outputs)-1 {
			t.Errorf("%s: %d won and %d lost of %d", g.what, won, lost, len(outputs))
		}
	}
}

func TestTenGoroutinesWantTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "mvm.db")
	outputs := make([]string, 10)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range outputs {
		wg.Go(func() {
			<-begin
			st, err := store.Open(t.Context(), path)
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			defer func() { _ = st.Close() }()
			outputs[i] = strings.Join(grabAll(t.Context(), st, fmt.Sprint(i)), "\n")
		})
	}
	close(begin)
	wg.Wait()
	checkGrabs(t, outputs)
}

func TestTenProcessesWantTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "mvm.db")
	checkGrabs(t, processes(t, path, 10))
}

// Fifty goroutines on one Store: every increment counts.
func TestTxIsSerial(t *testing.T) {
	st := open(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := st.Tx(t.Context(), func(tx *store.Tx) error {
				var n int
				if _, err := tx.GetHostState(tx.Context(), "n", &n); err != nil {
					return err
				}
				return tx.SetHostState(tx.Context(), "n", n+1)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var n int
	if _, err := st.GetHostState(t.Context(), "n", &n); err != nil || n != 50 {
		t.Errorf("n = %d, %v; want 50", n, err)
	}
}
