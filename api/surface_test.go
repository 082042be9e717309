package api

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
)

// What only looks at the host says what the host says.
func TestHostLooks(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	missing, err := m.Host.CheckRequiredBinaries(ctx)
	if err != nil || !slices.Equal(missing, host.MissingBinaries()) {
		t.Errorf("missing are %v, %v", missing, err)
	}
	forward, err := m.Host.GetIPForwardStatus(ctx)
	if err != nil || forward != "0" && forward != "1" {
		t.Errorf("forwarding is %q, %v", forward, err)
	}
	if state, err := m.Host.GetState(ctx); err != nil || state != nil {
		t.Errorf("the state of a host that was never set up is %+v, %v", state, err)
	}
	for _, name := range []string{"runs", "stops"} {
		if _, err := m.VM.Create(ctx, VMCreateInput{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"stops"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	vms, err := m.Host.GetRunningVMs(ctx)
	if err != nil || len(vms) != 1 || vms[0].Name != "runs" {
		t.Errorf("running are %v, %v", vms, err)
	}
}

// Network.Prune and Cache.PruneNetworks are one operation.
func TestNetworkPruneIsTheSame(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.makeNetwork(m, NetworkCreateInput{Name: "lab"})
	one, err1 := m.Network.Prune(t.Context(), PruneInput{DryRun: true})
	two, err2 := m.Cache.PruneNetworks(t.Context(), PruneInput{DryRun: true})
	if err1 != nil || err2 != nil || !slices.Equal(one.Removed, []string{"lab"}) || !slices.Equal(one.Removed, two.Removed) {
		t.Errorf("%v %v, %v %v", one, err1, two, err2)
	}
}

func TestInitRefusesNoVersion(t *testing.T) {
	m := newWorld(t).open()
	_, err := m.Init.Run(t.Context(), InitInput{SkipHost: true, SkipNetwork: true, DownloadVersion: "newest"})
	refused(t, err, mvm.ErrInvalid, "newest")
}

func TestKernelsElsewhereAndHere(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	mirror := t.TempDir()
	list := `{"releases":[
		{"moniker":"stable","version":"6.19.9","iseol":false,"released":{"isodate":"2026-03-20"},"source":"https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.19.9.tar.xz"},
		{"moniker":"longterm","version":"6.1.164","iseol":false,"released":{"isodate":"2026-02-20"},"source":"https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.1.164.tar.xz"}]}`
	if err := os.WriteFile(filepath.Join(mirror, "releases.json"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	m.core.cfg.AssetMirror = mirror
	all, err := m.Kernel.ListRemote(t.Context(), KernelRemoteInput{Type: "official", NoCache: true})
	if err != nil || len(all) != 2 || all[0].Version != "6.19.9" || all[0].Type != "official" || all[0].IsPresent {
		t.Errorf("%+v, %v", all, err)
	}
	_, err = m.Kernel.ListRemote(t.Context(), KernelRemoteInput{Type: "debian"})
	refused(t, err, mvm.ErrInvalid, `"debian" are not listed`)
	here, err := m.Kernel.ListAll(t.Context())
	if err != nil || len(here) == 0 {
		t.Fatal(here, err)
	}
	k, err := m.Kernel.Get(t.Context(), KernelInput{Identifiers: []string{here[0].Type}})
	if err != nil || k.ID != here[0].ID {
		t.Errorf("%+v, %v", k, err)
	}
}
