package api

import (
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

func TestParsePublish(t *testing.T) {
	for in, want := range map[string]string{
		"8080:80": "8080:80/tcp", "8080:80/tcp": "8080:80/tcp", "53:53/UDP": "53:53/udp", "0.0.0.0:1:2": "1:2/tcp",
		"127.0.0.1:8080:80": "127.0.0.1:8080:80/tcp", "65535:65535": "65535:65535/tcp",
	} {
		p, err := parsePublish(in)
		if got := publishText(p); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", in, got, err, want)
			continue
		}
		if again, err := parsePublish(publishText(p)); err != nil || again != p {
			t.Errorf("%s is not read back: %+v, %v", in, again, err)
		}
	}
	for _, in := range []string{"", "80", ":80", "80:", "0:80", "80:0", "65536:80", "a:b", "1:2:3", "1.2.3.4:80", "1.2.3:80:80", "[::1]:80:80", "::1:80:80", "80:80/sctp", "80:80/", "80-90:80", "-1:80", "1:2:3:4", "host:80:80", "80 :80"} {
		_, err := parsePublish(in)
		refused(t, err, mvm.ErrInvalid, "published port")
	}
}

func TestPublish(t *testing.T) {
	w := newWorld(t)
	w.net.Addresses = []network.Address{{Prefix: netip.MustParsePrefix("192.168.1.7/24"), Interface: "eth0"}}
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	create := func(name string, ports ...string) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: name, Publish: ports})
		return err
	}
	if err := create("web", "8080:80", "192.168.1.7:5353:53/udp"); err != nil {
		t.Fatal(err)
	}
	in, err := m.VM.Inspect(ctx, sel("web"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"8080:80/tcp", "192.168.1.7:5353:53/udp"}, in.Networking.Published); diff != "" {
		t.Error(diff)
	}
	before := w.state()
	two := 2
	for _, tc := range []struct {
		do   func() error
		kind mvm.Kind
		says string
	}{
		{func() error { return create("b", "8080:80") }, mvm.ErrExists, `used by VM "web"`},
		{func() error { return create("b", "127.0.0.1:8080:80") }, mvm.ErrExists, `used by VM "web" on all addresses`},
		{func() error { return create("b", "5353:53/udp") }, mvm.ErrExists, `used by VM "web" on 192.168.1.7`},
		{func() error { return create("b", "10.0.0.1:80:80") }, mvm.ErrNotFound, "no address 10.0.0.1"},
		{func() error { return create("b", "80:80", "127.0.0.1:80:81") }, mvm.ErrInvalid, "published twice"},
		{func() error { return create("b", "80") }, mvm.ErrInvalid, "which port of the guest"},
		{func() error { w.listening = 22; return create("b", "22:22") }, mvm.ErrExists, "used by sshd (process 7)"},
		{func() error {
			_, err := m.VM.Create(ctx, VMCreateInput{Name: "b", Publish: []string{"81:81"}, Count: &two})
			return err
		}, mvm.ErrInvalid, "cannot lead to 2 VMs"},
	} {
		refused(t, tc.do(), tc.kind, tc.says)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("a refusal left something:\n%s", diff)
	}
	if err := create("udp", "8080:80/udp"); err != nil {
		t.Errorf("the same port of the other protocol: %v", err)
	}

	// Kept while it is stopped, and there again with the next start.
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	refused(t, create("b", "8080:80"), mvm.ErrExists, `used by VM "web"`)
	w.listening = 8080
	_, err = m.VM.Start(ctx, sel("web"))
	refused(t, err, mvm.ErrExists, "used by sshd")
	w.listening = 0
	if _, err := m.VM.Start(ctx, sel("web")); err != nil {
		t.Fatal(err)
	}
	w.wantRules(m, "web", network.RulePublish, 4)
	if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := create("b", "8080:80"); err != nil {
		t.Errorf("the port of a removed VM: %v", err)
	}
	rows, err := m.core.st.ListForwards(ctx, "")
	if err != nil || len(rows) != 2 {
		t.Errorf("%d ports are reserved, want 2: %v", len(rows), err)
	}
}

// wantRules sees that a VM has so many rules of a kind in the kernel, and that no
// more is to be done for it.
func (w *world) wantRules(m *Client, name, kind string, n int) {
	w.t.Helper()
	vm, err := m.VM.Get(w.t.Context(), sel(name))
	if err != nil {
		w.t.Fatal(err)
	}
	net, err := m.core.st.GetNetwork(w.t.Context(), vm.NetworkID)
	if err != nil {
		w.t.Fatal(err)
	}
	spec, err := tapSpec(vm, net)
	if err != nil {
		w.t.Fatal(err)
	}
	o, err := w.net.ObserveTap(w.t.Context(), spec)
	if err != nil || !o.Right {
		w.t.Errorf("the rules of %s are not right: %v", name, err)
	}
	o.Rules = slices.DeleteFunc(o.Rules, func(r mvm.FirewallRule) bool { return r.RuleType != kind })
	if len(o.Rules) != n {
		w.t.Errorf("%s has %d rules of kind %s, want %d", name, len(o.Rules), kind, n)
	}
}

func TestIsolate(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "apart", Isolate: true}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.wantRules(m, "apart", network.RuleApart, 2)
		taps, err := w.net.Taps(ctx)
		if err != nil || len(taps) != 1 || !taps[0].Isolated {
			t.Errorf("taps are %+v, %v", taps, err)
		}
		if _, err := m.VM.Reboot(ctx, VMInput{Identifiers: []string{"apart"}, Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	if in, err := m.VM.Inspect(ctx, sel("apart")); err != nil || !in.Networking.Isolated || len(in.Networking.Published) != 0 {
		t.Errorf("%+v, %v", in.Networking, err)
	}
}

// What somebody did to a VM's rules is mended by sync.
func TestSyncMendsRulesOfVMs(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	res, err := m.VM.Create(ctx, VMCreateInput{Name: "web", Publish: []string{"8080:80"}})
	if err != nil {
		t.Fatal(err)
	}
	w.net.FlushTable(res.VMs[0].TapDevice)
	done, err := m.Network.Sync(ctx, NetworkInput{})
	if err != nil || len(done["default"].Changes) != 1 {
		t.Errorf("%+v, %v", done["default"], err)
	}
	w.wantRules(m, "web", network.RulePublish, 2)
	if done, err := m.Network.Sync(ctx, NetworkInput{}); err != nil || len(done["default"].Changes) != 0 {
		t.Errorf("again: %+v, %v", done["default"], err)
	}
}

// A port that leads to a VM of somebody else, whose database is not ours, is refused.
func TestPortOfAnotherUser(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	others := network.TapSpec{
		Name: "mvm-t-other", VMID: "0123456789abcdef", Bridge: "mvm-other", NetworkID: "n", IP: netip.MustParseAddr("172.30.0.2"), MAC: []byte{2, 0, 0, 0, 0, 1},
		Publish: []network.Publish{{Protocol: "tcp", HostAddr: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, GuestPort: 80}},
	}
	if _, err := w.net.EnsureNetwork(ctx, network.Spec{NetworkID: "n", Name: "other", Bridge: "mvm-other", Subnet: netip.MustParsePrefix("172.30.0.0/24"), Gateway: netip.MustParseAddr("172.30.0.1")}); err != nil {
		t.Fatal(err)
	}
	if err := w.net.AddTap(ctx, others); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	_, err := m.VM.Create(ctx, VMCreateInput{Name: "web", Publish: []string{"8080:80"}})
	refused(t, err, mvm.ErrExists, "tcp port 8080 of the host leads to another user's VM")
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("a refusal left something:\n%s", diff)
	}
	for _, port := range []string{"8080:80/udp", "8081:80"} {
		if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web-" + port[:4], Publish: []string{port}}); err != nil {
			t.Errorf("%s: %v", port, err)
		}
	}
}

// Of several VMs that want one port of the host at once, one gets it, whichever
// processes ask, and the others leave nothing.
func TestOnePortAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	port := int(freePorts(t, 1))
	w.set(m, "defaults.cloudinit", "nocloud_port_range_start", strconv.Itoa(port))
	w.set(m, "defaults.cloudinit", "nocloud_port_range_end", strconv.Itoa(port))
	for name, in := range map[string]VMCreateInput{
		"published": {Publish: []string{"8080:80"}},
		"nocloud":   {NoAgent: true, CloudInitMode: mvm.CloudInitNet, NocloudNetPort: &port},
	} {
		const n = 6
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			one, process := in, w.open()
			one.Name = name + "-" + strconv.Itoa(i)
			wg.Go(func() { _, errs[i] = process.VM.Create(t.Context(), one) })
		}
		wg.Wait()
		won := ""
		for i, err := range errs {
			if err != nil {
				refused(t, err, mvm.ErrExists, "is used by VM")
				continue
			}
			if won != "" {
				t.Errorf("%s: both %s and %d got it", name, won, i)
			}
			won = name + "-" + strconv.Itoa(i)
		}
		vms, err := m.VM.ListAll(t.Context())
		if err != nil || len(vms) != 1 || vms[0].Name != won {
			t.Fatalf("%s: %q won, there are %d VMs, %v", name, won, len(vms), err)
		}
		if _, err := m.VM.Remove(t.Context(), VMInput{Identifiers: []string{won}, Force: true}); err != nil {
			t.Fatal(err)
		}
	}
}
