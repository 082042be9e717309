package api

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// plan plans a VM in a world, and starts nothing.
func (w *world) plan(m *Client, in VMCreateInput) (*vmPlan, error) {
	w.t.Helper()
	st, err := m.core.open(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	inv, err := loadInventory(w.t.Context(), st)
	if err != nil {
		w.t.Fatal(err)
	}
	if in.Name == "" {
		in.Name = "web"
	}
	if err := in.validate(); err != nil {
		return nil, err
	}
	return m.core.planCreate(w.t.Context(), st, inv, in)
}

func (w *world) set(m *Client, category, key, value string) {
	w.t.Helper()
	st, err := m.core.open(w.t.Context())
	if err == nil {
		err = st.SetSetting(w.t.Context(), category, key, value)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestPlanDefaults(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	image, kernel := w.stock(m)
	p, err := w.plan(m, VMCreateInput{})
	if err != nil {
		t.Fatal(err)
	}
	it := p.item
	got := map[string]any{
		"vcpu": it.VCPUCount, "mem": it.MemSizeMiB, "disk": it.DiskSizeMiB, "dns": it.DNSServer, "user": deref(it.SSHUser), "pci": it.PCIEnabled, "nested": it.NestedVirt,
		"logging": it.EnableLogging, "metrics": it.EnableMetrics, "console": it.EnableConsole, "lsm": it.LSMFlags, "args": it.BootArgs, "mode": it.CloudInitMode,
		"status": it.Status, "image": it.ImageID, "kernel": it.KernelID, "keys": it.SSHKeys, "network": p.network.Name, "hypervisor": it.Hypervisor, "accel": it.Accel,
		"agent": it.HasAgent, "suffix": it.RootfsSuffix, "cmdline": p.cmdline(), "binary": it.BinaryID,
	}
	want := map[string]any{
		"vcpu": 1, "mem": 512, "disk": 2048, "dns": "1.1.1.1", "user": "root", "pci": true, "nested": false,
		"logging": true, "metrics": false, "console": false, "lsm": (*string)(nil), "args": (*string)(nil), "mode": mvm.CloudInitOff,
		"status": mvm.StatusStarting, "image": image.ID, "kernel": kernel.ID, "keys": []string{"default"}, "network": "default", "hypervisor": "qemu", "accel": "tcg",
		"agent": true, "suffix": ".qcow2", "cmdline": "net.ifnames=0 quiet cloud-init=disabled", "binary": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !validID(it.ID) || !strings.HasPrefix(it.MAC, "02:FC:") || len(p.keyLines) != 1 || !strings.HasPrefix(p.keyLines[0], "ssh-ed25519 ") {
		t.Errorf("id %q, MAC %q, keys %q", it.ID, it.MAC, p.keyLines)
	}
	again, err := w.plan(m, VMCreateInput{})
	if err != nil || again.item.ID == it.ID || again.item.MAC == it.MAC {
		t.Errorf("a second VM is the same one: %v", err)
	}
	if diff := cmp.Diff([]string{}, w.state()); diff != "" {
		t.Errorf("planning has left something:\n%s", diff)
	}
}

// What the user says goes before what the settings say, and that before the defaults.
func TestPlanOrderOfPrecedence(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	w.set(m, "defaults.vm", "vcpu_count", "3")
	w.set(m, "defaults.vm", "mem_size_mib", "300")
	w.set(m, "defaults.vm", "pci_enabled", "false")
	w.set(m, "defaults.vm", "boot_args", "from=setting")
	w.set(m, "defaults.vm", "guest_mac_prefix", "52:54")
	w.set(m, "defaults.vm", "ssh_user", "debian")
	vcpus, yes := 2, true
	p, err := w.plan(m, VMCreateInput{VCPUCount: &vcpus, PCIEnabled: &yes, BootArgs: "from=flag", LSMFlags: "landlock", DiskSize: "100M", NoAgent: true})
	if err != nil {
		t.Fatal(err)
	}
	it := p.item
	if it.VCPUCount != 2 || it.MemSizeMiB != 300 || !it.PCIEnabled || it.DiskSizeMiB != 100 || *it.SSHUser != "debian" || !strings.HasPrefix(it.MAC, "52:54:") || it.HasAgent {
		t.Errorf("planned %+v", it)
	}
	if got, want := p.cmdline(), "net.ifnames=0 quiet cloud-init=disabled lsm=landlock from=flag"; got != want {
		t.Errorf("command line %q, want %q", got, want)
	}
	p, err = w.plan(m, VMCreateInput{RequestedMAC: "52:54:00:aa:bb:cc", RequestedGuestIP: "172.27.0.99"})
	if err != nil || p.item.MAC != "52:54:00:AA:BB:CC" || p.wantIP.String() != "172.27.0.99" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestPlanRefusals(t *testing.T) {
	n, m1, huge := 33, 63, 1<<30
	for _, tc := range []struct {
		name string
		in   VMCreateInput
		set  [3]string
		kind mvm.Kind
		says string
	}{
		{"name", VMCreateInput{Name: "a_b"}, [3]string{}, mvm.ErrInvalid, "a_b"},
		{"vCPUs", VMCreateInput{VCPUCount: &n}, [3]string{}, mvm.ErrInvalid, "33 vCPUs"},
		{"little memory", VMCreateInput{MemSizeMiB: &m1}, [3]string{}, mvm.ErrInvalid, "63 MiB"},
		{"much memory", VMCreateInput{MemSizeMiB: &huge}, [3]string{}, mvm.ErrInvalid, "this host has"},
		{"disk size", VMCreateInput{DiskSize: "big"}, [3]string{}, mvm.ErrInvalid, "is not a size"},
		{"small disk", VMCreateInput{DiskSize: "63M"}, [3]string{}, mvm.ErrInvalid, "smaller than image"},
		{"large disk", VMCreateInput{DiskSize: "17T"}, [3]string{}, mvm.ErrInvalid, "larger than"},
		{"boot arguments", VMCreateInput{BootArgs: "a\nb"}, [3]string{}, mvm.ErrInvalid, "boot arguments"},
		{"hypervisor", VMCreateInput{Hypervisor: "xen"}, [3]string{}, mvm.ErrInvalid, "xen"},
		{"cloud-init", VMCreateInput{CloudInitMode: "smoke"}, [3]string{}, "", "smoke"},
		{"wait", VMCreateInput{Wait: "long"}, [3]string{}, mvm.ErrInvalid, "long"},
		{"user", VMCreateInput{User: "Root"}, [3]string{}, mvm.ErrInvalid, "Root"},
		{"MAC", VMCreateInput{RequestedMAC: "01:00:00:00:00:00"}, [3]string{}, mvm.ErrInvalid, "multicast"},
		{"IP", VMCreateInput{RequestedGuestIP: "172.27.0"}, [3]string{}, mvm.ErrInvalid, "is not an IP address"},
		{"gateway's IP", VMCreateInput{RequestedGuestIP: "172.27.0.1"}, [3]string{}, mvm.ErrInvalid, "172.27.0.1"},
		{"image", VMCreateInput{Image: "tniy"}, [3]string{}, mvm.ErrNotFound, "there is no image"},
		{"kernel", VMCreateInput{KernelID: "none"}, [3]string{}, mvm.ErrNotFound, "there is no kernel"},
		{"network", VMCreateInput{NetworkName: "none"}, [3]string{}, mvm.ErrNotFound, "there is no network"},
		{"key", VMCreateInput{SSHKeys: []string{"none"}}, [3]string{}, mvm.ErrNotFound, "there is no key"},
		{"binary", VMCreateInput{BinaryID: "none"}, [3]string{}, mvm.ErrNotFound, "there is no binary"},
		{"Firecracker by name", VMCreateInput{Hypervisor: "firecracker"}, [3]string{}, mvm.ErrUnavailable, "there is no firecracker"},
		{"Firecracker by path", VMCreateInput{FirecrackerBin: "/nowhere"}, [3]string{}, mvm.ErrUnavailable, "there is no firecracker"},
		{"damaged vCPU setting", VMCreateInput{}, [3]string{"defaults.vm", "vcpu_count", "99"}, mvm.ErrInvalid, "99 vCPUs"},
		{"damaged user setting", VMCreateInput{}, [3]string{"defaults.vm", "ssh_user", "a b"}, mvm.ErrInvalid, "a b"},
		{"damaged hypervisor setting", VMCreateInput{}, [3]string{"settings.vm", "hypervisor", "xen"}, mvm.ErrInvalid, "xen"},
		{"damaged MAC setting", VMCreateInput{}, [3]string{"defaults.vm", "guest_mac_prefix", "03"}, mvm.ErrInvalid, "03"},
		{"no room for VMs", VMCreateInput{}, [3]string{"settings.vm", "max_vms", "0"}, mvm.ErrUnavailable, "max_vms"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			m := w.open()
			w.stock(m)
			if tc.set[0] != "" {
				w.set(m, tc.set[0], tc.set[1], tc.set[2])
			}
			if tc.in.Name == "" {
				tc.in.Name = "web"
			}
			_, err := m.VM.Create(t.Context(), tc.in)
			if tc.kind == "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v", err)
				}
			} else {
				refused(t, err, tc.kind, tc.says)
			}
			if diff := cmp.Diff([]string{}, w.state()); diff != "" {
				t.Errorf("something is left:\n%s", diff)
			}
		})
	}
}

func TestPlanWithoutAssets(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	_, err := w.plan(m, VMCreateInput{})
	refused(t, err, mvm.ErrNotFound, "there is no image yet")
	image, kernel := w.stock(m)
	file := m.core.paths.abs(image.Path)
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	_, err = w.plan(m, VMCreateInput{})
	refused(t, err, mvm.ErrBroken, "the file of image")
	if err := errors.Join(os.Rename(file+".away", file), os.Remove(m.core.paths.abs(kernel.Path))); err != nil {
		t.Fatal(err)
	}
	_, err = w.plan(m, VMCreateInput{})
	refused(t, err, mvm.ErrBroken, "the file of kernel")
	w.file(m.core.paths.abs(kernel.Path), 1)
	kernel.Arch = "arm64"
	if err := m.core.st.UpsertKernel(t.Context(), kernel); err != nil {
		t.Fatal(err)
	}
	_, err = w.plan(m, VMCreateInput{})
	refused(t, err, mvm.ErrInvalid, "is for x86_64, kernel")
}

// On a machine where an operation is refused for want of root, nothing was made:
// no key, no network.
func TestPlanWithoutRootMakesNothing(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	w.root = false
	_, err := w.plan(m, VMCreateInput{})
	refused(t, err, mvm.ErrPrivilege, "sudo mvm host init")
	inv, err := loadInventory(t.Context(), m.core.st)
	if err != nil || len(inv.keys) != 0 || len(inv.networks) != 0 {
		t.Errorf("there are %d keys and %d networks, %v", len(inv.keys), len(inv.networks), err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "config")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the configuration directory is there: %v", err)
	}
}

func TestChooseDriver(t *testing.T) {
	w := newWorld(t)
	var notices []string
	m := w.open()
	m.core.cfg.Notice = func(s string) { notices = append(notices, s) }
	st, err := m.core.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	choose := func(want string) (string, error) {
		d, _, _, err := m.core.chooseDriver(t.Context(), st, want, "", "")
		if err != nil {
			return "", err
		}
		return d.Name(), nil
	}
	for range 2 { // told once
		if got, err := choose("auto"); err != nil || got != "qemu" {
			t.Errorf("without Firecracker: %s, %v", got, err)
		}
	}
	if len(notices) != 1 || !strings.Contains(notices[0], "software emulation") || !strings.Contains(notices[0], "there is no firecracker") {
		t.Errorf("told: %q", notices)
	}
	_, err = choose("firecracker")
	refused(t, err, mvm.ErrUnavailable, "firecracker cannot run here")
	w.fc = vmm.Probe{Usable: true, Accel: "kvm", Version: "1.16.1"}
	for want, name := range map[string]string{"auto": "firecracker", "": "firecracker", "firecracker": "firecracker", "qemu": "qemu"} {
		if got, err := choose(want); err != nil || got != name {
			t.Errorf("%q gives %s, %v", want, got, err)
		}
	}
	w.fc = vmm.Probe{}
	broken := probed{Driver: w.driver, name: "qemu"}
	m.core.qemu = func() vmm.Driver { return broken }
	if _, err := choose("auto"); !errors.Is(err, mvm.ErrUnavailable) || !strings.Contains(err.Error(), "qemu") || !strings.Contains(err.Error(), "firecracker") {
		t.Errorf("with neither: %v", err)
	}
}
