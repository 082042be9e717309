package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/dns"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// fakeNames runs DNS servers that are files, so that several processes see the same.
type fakeNames struct {
	taken error // the port is
	fail  error // starting
	port  atomic.Bool
}

// bind has the port for a moment, as whoever asks for it or starts there does.
func (f *fakeNames) bind() error {
	if !f.port.CompareAndSwap(false, true) {
		return mvm.Errorf(mvm.ErrExists, "another program of this host listens on port 53")
	}
	time.Sleep(time.Millisecond)
	f.port.Store(false)
	return nil
}

const fakeServer = "fake-server"

func (f *fakeNames) Ensure(_ context.Context, s dns.Server) (bool, error) {
	if f.fail != nil {
		return false, f.fail
	}
	if f.Running(s.Dir) {
		return false, nil
	}
	if err := f.bind(); err != nil {
		return false, err
	}
	return true, os.WriteFile(filepath.Join(s.Dir, fakeServer), []byte(s.Listen.String()+" on "+s.Device), 0o600)
}

func (f *fakeNames) Running(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, fakeServer))
	return err == nil
}

func (f *fakeNames) Stop(_ context.Context, _, dir string) error {
	if err := os.Remove(filepath.Join(dir, fakeServer)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f *fakeNames) PortFree(context.Context, netip.AddrPort) error {
	if f.taken != nil {
		return f.taken
	}
	return f.bind()
}

// zone is what the DNS server of a network knows: NAME ADDRESS, with the names that it
// may ask for. It is nil while none runs.
func (w *world) zone(n *mvm.NetworkItem) []string {
	w.t.Helper()
	dir := filepath.Join(w.dir, "cache", "dns", n.ID)
	if !w.names.Running(dir) {
		if entries, err := os.ReadDir(dir); err == nil {
			w.t.Errorf("no server runs, and there is %v", entries)
		}
		return nil
	}
	var z dns.Zone
	data, err := os.ReadFile(filepath.Join(dir, "zone.json"))
	if err == nil {
		err = json.Unmarshal(data, &z)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	lines := []string{}
	for _, h := range z.Hosts {
		line := h.Name + " " + h.Addr.String()
		if h.Limited {
			line += " asks " + strings.Join(h.Names, ",")
		}
		if len(h.Servers) > 0 {
			line += " from " + strings.Join(h.Servers, ",")
		}
		lines = append(lines, line)
	}
	return lines
}

func (w *world) wantZone(what string, n *mvm.NetworkItem, want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.zone(n)); diff != "" {
		w.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func vmSel(name string) VMInput { return VMInput{Identifiers: []string{name}, Force: true} }

// The DNS server of a network knows the VMs that run, and runs as long as there are
// any, whichever way they come and go.
func TestDNSFollowsVMs(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	n := w.makeNetwork(m, NetworkCreateInput{Name: "lab", Subnet: "172.28.0.0/24"})
	w.wantZone("a new network", n)
	create := func(in VMCreateInput) {
		t.Helper()
		in.NetworkName = "lab"
		if _, err := m.VM.Create(ctx, in); err != nil {
			t.Fatal(err)
		}
	}
	create(VMCreateInput{Name: "web"})
	w.wantZone("one VM", n, "web 172.28.0.2")
	create(VMCreateInput{Name: "db", Egress: []string{"*.b.org", "10.0.0.0/8", "a.org"}, DNSServer: "9.9.9.9, 8.8.8.8"})
	w.wantZone("two VMs", n, "web 172.28.0.2", "db 172.28.0.3 asks *.b.org,a.org from 9.9.9.9,8.8.8.8")
	if got := string(must(os.ReadFile(filepath.Join(w.dir, "cache", "dns", n.ID, fakeServer)))(t)); got != "172.28.0.1:53 on mvm-lab" {
		t.Errorf("the server is at %q", got)
	}
	boot := bootConfigOf(t, w, m, "db")
	if !slices.Equal(boot, []string{"172.28.0.1"}) {
		t.Errorf("the guest asks %v", boot)
	}
	if _, err := m.VM.Stop(ctx, vmSel("web")); err != nil {
		t.Fatal(err)
	}
	w.wantZone("one has stopped", n, "db 172.28.0.3 asks *.b.org,a.org from 9.9.9.9,8.8.8.8")
	if _, err := m.VM.Start(ctx, vmSel("web")); err != nil {
		t.Fatal(err)
	}
	// A server that was killed is there again with the next command, whichever it is.
	dir := filepath.Join(w.dir, "cache", "dns", n.ID)
	if err := os.Remove(filepath.Join(dir, fakeServer)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.open().Network.ListAll(ctx); err != nil || !w.names.Running(dir) {
		t.Errorf("after the server was killed: %v", err)
	}
	// A VM that cannot be started leaves no trace in it.
	w.net.Fail = func(effect string) error {
		if strings.HasPrefix(effect, "make tap") {
			return errors.New("no more taps")
		}
		return nil
	}
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "never", NetworkName: "lab"}); err == nil {
		t.Error("a VM without a tap")
	}
	w.net.Fail = nil
	w.wantZone("after one that failed", n, "web 172.28.0.2", "db 172.28.0.3 asks *.b.org,a.org from 9.9.9.9,8.8.8.8")
	web := mustVM(t, m, "web")
	handle := must(handleOf(web))(t)
	w.driver.End(web.ID, vmm.Exit{Code: 0})
	if err := errors.Join(proc.WaitExit(ctx, handle.VMM), m.core.recordEnd(ctx, web.ID)); err != nil {
		t.Fatal(err)
	}
	w.wantZone("one ended by itself", n, "db 172.28.0.3 asks *.b.org,a.org from 9.9.9.9,8.8.8.8")
	if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"db", "web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	w.wantZone("the last was removed", n)
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// bootConfigOf is which DNS servers a VM's guest would be told.
func bootConfigOf(t *testing.T, w *world, m *Client, name string) []string {
	t.Helper()
	vm := mustVM(t, m, name)
	inv := must(loadInventory(t.Context(), m.core.st))(t)
	p, err := m.core.planFrom(t.Context(), m.core.st, inv, vm, vm.NetworkID)
	if err != nil {
		t.Fatal(err)
	}
	if p.identity, err = m.core.loadIdentity(vm.ID); err != nil {
		t.Fatal(err)
	}
	return must(p.bootConfig())(t).Network.DNS
}

func TestDNSOnAndOff(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	off := false
	n := w.makeNetwork(m, NetworkCreateInput{Name: "lab", Subnet: "172.28.0.0/24", DNSEnabled: &off})
	rules := func() int {
		return len(must(w.net.Observe(ctx, networkSpec(mustGet(t, m, "lab"))))(t).Rules)
	}
	without := rules()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NetworkName: "lab"}); err != nil {
		t.Fatal(err)
	}
	w.wantZone("without DNS", n)
	if got := bootConfigOf(t, w, m, "web"); !slices.Equal(got, []string{"1.1.1.1"}) {
		t.Errorf("the guest asks %v", got)
	}
	_, err := m.VM.Create(ctx, VMCreateInput{Name: "few", NetworkName: "lab", Egress: []string{"a.org"}})
	refused(t, err, mvm.ErrConflict, "no DNS of its own")
	egress := []string{"a.org"}
	_, err = m.VM.Update(ctx, VMUpdateInput{Identifiers: []string{"web"}, Egress: &egress})
	refused(t, err, mvm.ErrConflict, "no DNS of its own")

	w.names.taken = mvm.Errorf(mvm.ErrExists, "another program of this host listens on port 53")
	_, err = m.Network.SetDNS(ctx, netSel("lab"), true)
	refused(t, err, mvm.ErrExists, "listens on port 53")
	w.names.taken = nil
	if mustGet(t, m, "lab").DNSEnabled {
		t.Error("a refusal switched it on")
	}
	for range 2 {
		if n, err := m.Network.SetDNS(ctx, netSel("lab"), true); err != nil || !n.DNSEnabled {
			t.Fatal(err)
		}
		w.wantZone("switched on", n, "web 172.28.0.2")
		if got := rules(); got != without+2 {
			t.Errorf("%d rules with DNS, %d without", got, without)
		}
	}
	if _, err := m.VM.Update(ctx, VMUpdateInput{Identifiers: []string{"web"}, Egress: &egress}); err != nil {
		t.Fatal(err)
	}
	_, err = m.Network.SetDNS(ctx, netSel("lab"), false)
	refused(t, err, mvm.ErrConflict, `VM "web" may reach names`)
	deny := []string{}
	if _, err := m.VM.Update(ctx, VMUpdateInput{Identifiers: []string{"web"}, Egress: &deny}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Network.SetDNS(ctx, netSel("lab"), false); err != nil {
		t.Fatal(err)
	}
	w.wantZone("switched off", n)
	if got := rules(); got != without {
		t.Errorf("%d rules after it was switched off, %d before", got, without)
	}
	// A port that a program of the host has is told before anything is made.
	if _, err := m.Network.SetDNS(ctx, netSel("lab"), true); err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Stop(ctx, vmSel("web")); err != nil {
		t.Fatal(err)
	}
	w.names.taken = mvm.Errorf(mvm.ErrExists, "another program of this host listens on port 53")
	before := w.state()
	_, err = m.VM.Create(ctx, VMCreateInput{Name: "late", NetworkName: "lab"})
	refused(t, err, mvm.ErrExists, "listens on port 53")
	_, err = m.VM.Start(ctx, vmSel("web"))
	refused(t, err, mvm.ErrExists, "listens on port 53")
	if hint := mvm.HintOf(err); !strings.Contains(hint, "mvm network dns lab off") {
		t.Errorf("the hint is %q", hint)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("a refusal had effects:\n%s", diff)
	}
	w.names.taken, w.root = nil, false
	_, err = m.Network.SetDNS(ctx, netSel("lab"), false)
	refused(t, err, mvm.ErrPrivilege, "switching DNS off needs root")
}

// Networks of members of the group have no DNS, and whoever makes one is told so.
func TestMembersHaveNoDNS(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	ctx := t.Context()
	var said []string
	m.core.cfg.Notice = func(s string) { said = append(said, s) }
	w.root, m.core.access = false, func(string) error { return nil }
	on, off := true, false
	if n, err := m.Network.Create(ctx, NetworkCreateInput{Name: "lab"}); err != nil || n.DNSEnabled {
		t.Errorf("%+v, %v", n, err)
	}
	if n, err := m.Network.CreateDefaultNetwork(ctx); err != nil || n.DNSEnabled {
		t.Errorf("%+v, %v", n, err)
	}
	if len(said) != 2 || !strings.HasPrefix(said[0], "network lab has no DNS server, which takes root") || !strings.HasPrefix(said[1], "network default has no DNS server") {
		t.Errorf("told was %q", said)
	}
	said = nil
	if n, err := m.Network.Create(ctx, NetworkCreateInput{Name: "mute", DNSEnabled: &off}); err != nil || n.DNSEnabled || len(said) > 0 {
		t.Errorf("%+v, %v, told was %q", n, err, said)
	}
	_, err := m.Network.Create(ctx, NetworkCreateInput{Name: "loud", DNSEnabled: &on})
	refused(t, err, mvm.ErrPrivilege, "takes root")
	_, err = m.Network.SetDNS(ctx, netSel("lab"), true)
	refused(t, err, mvm.ErrPrivilege, "takes root")
}

// Several VMs at once on a network whose server does not run yet: each asks for its
// port, and none takes another's asking for a foreign program.
func TestNamesAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: fmt.Sprintf("vm-%d", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
