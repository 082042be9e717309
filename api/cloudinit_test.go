package api

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cloudinit"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
)

// userData writes a file of user data.
func userData(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "user-data.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ownISO writes an ISO as a user would have one.
func ownISO(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mine.iso")
	if err := cloudinit.WriteISO(t.Context(), path, cloudinit.Documents{cloudinit.MetaData: []byte("instance-id: x\n"), cloudinit.UserDataName: []byte("#cloud-config\n{}\n")}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCloudInitRefusals(t *testing.T) {
	port := func(n int) *int { return &n }
	noISO := filepath.Join(t.TempDir(), "none.iso")
	plainFile := userData(t, "text")
	for name, c := range map[string]struct {
		in   VMCreateInput
		kind mvm.Kind
		says string
	}{
		"mode":                 {VMCreateInput{CloudInitMode: "smoke"}, mvm.ErrInvalid, `"smoke" is no cloud-init mode`},
		"data with off":        {VMCreateInput{CloudInitMode: mvm.CloudInitOff, CustomUserData: "x"}, mvm.ErrInvalid, "off has no use for user data"},
		"port with inject":     {VMCreateInput{CloudInitMode: mvm.CloudInitInject, NocloudNetPort: port(8000)}, mvm.ErrInvalid, "inject has no use for a NoCloud port"},
		"keep with net":        {VMCreateInput{CloudInitMode: mvm.CloudInitNet, KeepCloudInitISO: true}, mvm.ErrInvalid, "net has no use for keeping the ISO"},
		"ISO with net":         {VMCreateInput{CloudInitMode: mvm.CloudInitNet, CloudInitISOPath: "x"}, mvm.ErrInvalid, "net has no use for an ISO"},
		"network with off":     {VMCreateInput{CloudInitMode: mvm.CloudInitOff, SkipCINetworkConfig: true}, mvm.ErrInvalid, "off has no use"},
		"ISO and data":         {VMCreateInput{CloudInitISOPath: "x", CustomUserData: "y"}, mvm.ErrInvalid, "in the ISO and beside it"},
		"no port":              {VMCreateInput{NocloudNetPort: port(70000)}, mvm.ErrInvalid, "70000 is no port"},
		"port out of range":    {VMCreateInput{NocloudNetPort: port(7999)}, mvm.ErrInvalid, "7999 is outside of 8000 to 9000"},
		"user data missing":    {VMCreateInput{CustomUserData: noISO}, mvm.ErrNotFound, "is not there"},
		"user data, bad":       {VMCreateInput{CustomUserData: userData(t, "#cloud-config\na: 1\nb: [\n")}, mvm.ErrInvalid, "line 4"},
		"user data, no header": {VMCreateInput{CustomUserData: plainFile}, mvm.ErrInvalid, "first line"},
		"ISO missing":          {VMCreateInput{CloudInitISOPath: noISO}, mvm.ErrNotFound, "is not there"},
		"ISO is none":          {VMCreateInput{CloudInitISOPath: plainFile}, mvm.ErrInvalid, "no ISO 9660 image"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.open()
			w.stock(m)
			c.in.Name = "web"
			_, err := m.VM.Create(t.Context(), c.in)
			refused(t, err, c.kind, c.says)
			inv, err := loadInventory(t.Context(), m.core.st)
			if err == nil && len(inv.networks)+len(inv.keys) > 0 {
				t.Error("a network or a key was made")
			}
			if diff := cmp.Diff([]string{}, w.state()); diff != "" {
				t.Errorf("something is left:\n%s", diff)
			}
		})
	}
}

// The mode follows from what is given, and is off otherwise.
func TestCloudInitMode(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	data, zero := userData(t, "#cloud-config\n{}\n"), 0
	for want, ins := range map[mvm.CloudInitMode][]VMCreateInput{
		mvm.CloudInitOff:    {{}, {CloudInitMode: mvm.CloudInitOff}},
		mvm.CloudInitInject: {{CustomUserData: data}, {CloudInitMode: mvm.CloudInitInject}, {SkipCINetworkConfig: true}},
		mvm.CloudInitISO:    {{KeepCloudInitISO: true}, {CloudInitMode: mvm.CloudInitISO, CustomUserData: data}, {CloudInitISOPath: ownISO(t)}},
		mvm.CloudInitNet:    {{NocloudNetPort: &zero}, {CloudInitMode: mvm.CloudInitNet, CustomUserData: data}},
	} {
		for _, in := range ins {
			p, err := w.plan(m, in)
			if err != nil || p.item.CloudInitMode != want || (p.item.Options.CloudInit != nil) != (want != mvm.CloudInitOff) {
				t.Errorf("%+v: %v, want %s", in, err, want)
			}
		}
	}
}

func TestCloudInitKernelArgs(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	for name, c := range map[string]struct {
		in   VMCreateInput
		want string // ID stands for the VM's id, NET for its network configuration
	}{
		"off":              {VMCreateInput{}, "cloud-init=disabled"},
		"by hand":          {VMCreateInput{BootArgs: "ds=nocloud;s=http://192.0.2.1/ ro"}, "ds=nocloud;s=http://192.0.2.1/ ro"},
		"switched on":      {VMCreateInput{BootArgs: "cloud-init=enabled"}, "cloud-init=enabled"},
		"something else":   {VMCreateInput{BootArgs: "dso=1"}, "cloud-init=disabled dso=1"},
		"inject":           {VMCreateInput{CloudInitMode: mvm.CloudInitInject}, "cloud-init=enabled ds=nocloud;i=ID"},
		"iso, no network":  {VMCreateInput{CloudInitMode: mvm.CloudInitISO, SkipCINetworkConfig: true}, "cloud-init=enabled ds=nocloud;i=ID network-config=disabled"},
		"own ISO":          {VMCreateInput{CloudInitISOPath: ownISO(t)}, "cloud-init=enabled ds=nocloud;i=ID network-config=NET"},
		"own ISO and net":  {VMCreateInput{CloudInitISOPath: ownISO(t), SkipCINetworkConfig: true}, "cloud-init=enabled ds=nocloud;i=ID"},
		"net":              {VMCreateInput{CloudInitMode: mvm.CloudInitNet}, "cloud-init=enabled ds=nocloud;i=ID;dsmode=net;s=http://172.27.0.1:8123/ network-config=NET"},
		"net, no network":  {VMCreateInput{CloudInitMode: mvm.CloudInitNet, SkipCINetworkConfig: true}, "cloud-init=enabled ds=nocloud;i=ID;dsmode=net;s=http://172.27.0.1:8123/ network-config=disabled"},
		"own, net skipped": {VMCreateInput{CloudInitISOPath: ownISO(t), SkipCINetworkConfig: true, BootArgs: "x"}, "cloud-init=enabled ds=nocloud;i=ID x"},
	} {
		p, err := w.plan(m, c.in)
		if err != nil {
			t.Fatal(name, err)
		}
		port := 8123
		p.item.IPv4, p.item.NocloudNetPort = "172.27.0.9", &port
		got := strings.ReplaceAll(strings.TrimPrefix(p.cmdline(), "net.ifnames=0 quiet "), p.item.ID, "ID")
		if _, code, ok := strings.Cut(got, "network-config="); ok && strings.Contains(c.want, "=NET") {
			data, err := base64.StdEncoding.DecodeString(code)
			if err != nil || !strings.Contains(string(data), `"addresses":["172.27.0.9/24"]`) || !strings.Contains(string(data), strings.ToLower(p.item.MAC)) {
				t.Errorf("%s: the network is %s, %v", name, data, err)
			}
			got = strings.Replace(got, code, "NET", 1)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// The documents of a VM, its disk or its seed, over its life.
func TestCloudInitDocumentsOfAVM(t *testing.T) {
	data := userData(t, "#cloud-config\npackages: [jq]\n")
	for _, c := range []struct {
		name      string
		in        VMCreateInput
		disk, iso bool // the VM has one; its file is there when the VM has started
	}{
		{"inject", VMCreateInput{CloudInitMode: mvm.CloudInitInject, CustomUserData: data}, false, false},
		{"iso", VMCreateInput{CloudInitMode: mvm.CloudInitISO, CustomUserData: data}, true, false},
		{"iso kept", VMCreateInput{CloudInitMode: mvm.CloudInitISO, CustomUserData: data, KeepCloudInitISO: true}, true, true},
		{"own iso", VMCreateInput{CloudInitISOPath: ownISO(t)}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			m := w.open()
			w.stock(m)
			c.in.Name, c.in.NoAgent = "web", true
			res, err := m.VM.Create(t.Context(), c.in)
			if err != nil {
				t.Fatal(err)
			}
			vm := res.VMs[0]
			path := filepath.Join(m.core.paths.vm(vm.ID), "cloud-init.iso")
			for round := range 2 {
				disks := w.launched(vm.ID).Disks
				last := disks[len(disks)-1]
				if got := last.ID == "cidata"; got != c.disk || got && (last.Path != path || !last.ReadOnly || last.Format != "raw" || len(disks) != 2) {
					t.Errorf("start %d: disks %+v", round, disks)
				}
				if _, err := os.Stat(path); (err == nil) != c.iso {
					t.Errorf("start %d: the ISO: %v", round, err)
				}
				if c.iso {
					if err := cloudinit.CheckISO(path); err != nil {
						t.Error(err)
					}
				}
				if round == 0 {
					_, err1 := m.VM.Stop(t.Context(), VMInput{Identifiers: []string{"web"}, Force: true})
					_, err2 := m.VM.Start(t.Context(), sel("web"))
					if err := errors.Join(err1, err2); err != nil {
						t.Fatal(err)
					}
				}
			}
			if c.in.CustomUserData != "" {
				docs, err := cloudinit.ReadDocuments(m.core.cloudInitDocs(vm.ID))
				if err != nil || !strings.Contains(string(docs[cloudinit.UserDataName]), "packages: [jq]") || !strings.Contains(string(docs[cloudinit.UserDataName]), "ssh-ed25519 ") ||
					!strings.Contains(string(docs[cloudinit.NetworkConfig]), vm.IPv4+"/24") || !strings.Contains(string(docs[cloudinit.MetaData]), vm.ID) {
					t.Errorf("the documents are %s, %v", docs, err)
				}
			}
			if _, err := m.VM.Remove(t.Context(), VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{}, w.state()); diff != "" {
				t.Errorf("something is left:\n%s", diff)
			}
		})
	}
}

// What the initramfs is told is the seed in mode inject only, and never that of a VM
// without cloud-init.
func TestCloudInitBootConfig(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	for mode, want := range map[mvm.CloudInitMode][]string{mvm.CloudInitOff: nil, mvm.CloudInitISO: nil, mvm.CloudInitNet: nil,
		mvm.CloudInitInject: {"meta-data", "network-config", "user-data", "vendor-data"}} {
		p, err := w.plan(m, VMCreateInput{CloudInitMode: mode})
		if err != nil {
			t.Fatal(err)
		}
		p.item.IPv4 = "172.27.0.9"
		for _, s := range p.cloudInitNew() {
			if err := errors.Join(os.MkdirAll(m.core.paths.vm(p.item.ID), 0o700), s.Apply(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		cfg, err := p.bootConfig()
		if err != nil || (cfg.CloudInit == nil) != (mode == mvm.CloudInitOff) {
			t.Fatalf("%s: %+v, %v", mode, cfg.CloudInit, err)
		}
		var names []string
		if cfg.CloudInit != nil {
			for name := range cfg.CloudInit.Seed {
				names = append(names, name)
			}
			if !cfg.CloudInit.Network {
				t.Errorf("%s: nobody configures the network", mode)
			}
		}
		slices.Sort(names)
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("%s:\n%s", mode, diff)
		}
	}
}

// Servers of VMs have ports of their own, and end with their VM.
func TestNocloudServers(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	urls := map[string]string{}
	m.core.serve = func(ctx context.Context, s cloudinit.Server) (proc.Identity, error) {
		s.Listen, s.Exe, s.Peer = netip.AddrPortFrom(loopback, freePorts(t, 1)), os.Args[0], loopback
		urls[s.VMID] = "http://" + s.Listen.String() + "/"
		return s.Start(ctx)
	}
	first := int(freePorts(t, 4))
	w.set(m, "defaults.cloudinit", "nocloud_port_range_start", strconv.Itoa(first))
	w.set(m, "defaults.cloudinit", "nocloud_port_range_end", strconv.Itoa(first+2))
	take := func(port int) { // by another program
		l, err := net.Listen("tcp4", "0.0.0.0:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	take(first + 1)
	create := func(name string, port int) (*mvm.VMInstanceItem, error) {
		res, err := m.VM.Create(ctx, VMCreateInput{Name: name, NoAgent: true, CloudInitMode: mvm.CloudInitNet, NocloudNetPort: &port})
		if err != nil {
			return nil, err
		}
		return res.VMs[0], nil
	}
	a, err1 := create("a", 0)
	_, err := create("b", first+1)
	refused(t, err, mvm.ErrExists, strconv.Itoa(first+1)+" is used by another program")
	_, err = create("b", first)
	refused(t, err, mvm.ErrExists, strconv.Itoa(first)+` is used by VM "a"`)
	late := &vmPlan{c: m.core, item: &mvm.VMInstanceItem{ID: "late", CloudInitMode: mvm.CloudInitNet}, network: mustGet(t, m, "default")}
	late.cloudInit.port = first // free, as far as it saw before a was reserved
	refused(t, m.core.st.Tx(ctx, func(tx *store.Tx) error { return late.reservePort(ctx, tx) }), mvm.ErrExists, strconv.Itoa(first)+` is used by VM "a"`)
	b, err2 := create("b", 0)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if *a.NocloudNetPort != first || *b.NocloudNetPort != first+2 {
		t.Errorf("the ports are %d and %d, from %d", *a.NocloudNetPort, *b.NocloudNetPort, first)
	}
	_, err = create("c", 0)
	refused(t, err, mvm.ErrUnavailable, "no NoCloud port from")

	w.wantServer(a, true)
	if a.NocloudNetPID == nil || !slices.Contains(cmdline(*a.NocloudNetPID), cloudinit.Token(a.ID)) {
		t.Error("the process of the server is not written down")
	}
	if got := get(t, urls[a.ID]+cloudinit.UserDataName); !strings.HasPrefix(got, "#cloud-config\n") {
		t.Errorf("it serves %q", got)
	}
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"a"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	w.wantServer(a, false)
	if got := mustVM(t, m, "a"); got.NocloudNetPID != nil || *got.NocloudNetPort != first {
		t.Errorf("after stop: %v, %v", got.NocloudNetPID, got.NocloudNetPort)
	}

	// A program has its port by now: it gets another.
	w.set(m, "defaults.cloudinit", "nocloud_port_range_end", strconv.Itoa(first+3))
	take(first)
	if _, err := m.VM.Start(ctx, sel("a")); err != nil {
		t.Fatal(err)
	}
	got := mustVM(t, m, "a")
	if *got.NocloudNetPort != first+3 || !strings.Contains(w.launched(a.ID).Cmdline, ":"+strconv.Itoa(first+3)+"/") {
		t.Errorf("after start: port %d, command line %s", *got.NocloudNetPort, w.launched(a.ID).Cmdline)
	}
	w.wantServer(a, true)
	server, err := proc.Of(*got.NocloudNetPID)
	if err == nil {
		err = proc.Kill(ctx, server, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is not listed any more", func() bool { return mustVM(t, m, "a").NocloudNetPID == nil })
	if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"a", "b"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	w.wantServer(b, false)
	if diff := cmp.Diff([]string{}, w.state()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
}

var loopback = netip.MustParseAddr("127.0.0.1")

// wantServer looks for the process and the rules of a VM's server.
func (w *world) wantServer(vm *mvm.VMInstanceItem, want bool) {
	w.t.Helper()
	ids, err := proc.FindByArg(cloudinit.Token(vm.ID))
	if err != nil {
		w.t.Fatal(err)
	}
	if table := w.net.HasTable("mvm-nocloud-" + vm.ID); len(ids) > 0 != want || table != want {
		w.t.Errorf("%s has %d servers, rules: %v; want %v", vm.Name, len(ids), table, want)
	}
}

func mustVM(t *testing.T, m *Client, name string) *mvm.VMInstanceItem {
	t.Helper()
	vm, err := m.VM.Get(t.Context(), sel(name))
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// freePorts is the first of n ports of this machine, one after the other, that
// nobody has. They lie below those that the kernel gives to clients.
func freePorts(t *testing.T, n uint16) uint16 {
	t.Helper()
	for port := 15000 + uint16(os.Getpid()%10000); ; port += n {
		free := true
		for i := range n {
			free = free && cloudinit.PortFree(t.Context(), netip.AddrPortFrom(netip.IPv4Unspecified(), port+i)) == nil
		}
		if free {
			return port
		}
	}
}
