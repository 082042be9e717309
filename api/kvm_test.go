package api

import (
	"context"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
)

var pvmHost = host.KVM{Paravirtual: true, Problem: host.Problem{What: "KVM is paravirtual here", Hint: "import a kernel"}}

// onPVM makes a client on a host whose KVM boots nothing but PVM guests.
func onPVM(t *testing.T, kvm host.KVM) *Client {
	t.Helper()
	m := newWorld(t).open()
	m.core.checkKVM = func() host.KVM { return kvm }
	m.core.firecracker = func(string) vmm.Driver {
		return probed{Driver: vmmtest.NewFake(), name: "firecracker", probe: vmm.Probe{
			Version: "1.16.1", Problems: []vmm.Problem{{What: kvm.Problem.What, Hint: kvm.Problem.Hint, Fatal: true}},
		}}
	}
	m.core.qemu = func() vmm.Driver {
		return probed{Driver: vmmtest.NewFake(), name: "qemu", probe: vmm.Probe{
			Version: "7.2.0", Usable: true, Accel: "tcg", Problems: []vmm.Problem{{What: kvm.Problem.What + ", so QEMU emulates the CPU"}},
		}}
	}
	return m
}

// A host whose KVM is paravirtual counts as KVM for kernels that are built for it, and
// for no others.
func TestAParavirtualKVM(t *testing.T) {
	ordinary, guest := &mvm.KernelItem{}, &mvm.KernelItem{PVMGuest: true}
	for _, tc := range []struct {
		name          string
		kernel        *mvm.KernelItem
		want          string
		driver, accel string
		fails         string
	}{
		{"an ordinary kernel", ordinary, "auto", "qemu", "tcg", ""},
		{"no kernel", nil, "auto", "qemu", "tcg", ""},
		{"a PVM guest", guest, "auto", "firecracker", "kvm", ""},
		{"a PVM guest on QEMU", guest, "qemu", "qemu", "kvm", ""},
		{"an ordinary kernel on Firecracker", ordinary, "firecracker", "", "", "paravirtual"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := onPVM(t, pvmHost)
			st, err := m.core.open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			d, p, _, err := m.core.chooseDriverFor(t.Context(), st, tc.kernel, tc.want, "", "")
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if err != nil || d.Name() != tc.driver || p.Accel != tc.accel || !p.Usable {
				t.Errorf("it is %v with %+v, %v", d, p, err)
			}
		})
	}
}

// Who may not open the device is told that, once the kernel would do.
func TestAParavirtualKVMThatIsDenied(t *testing.T) {
	kvm := pvmHost
	kvm.Denied = true
	m := onPVM(t, kvm)
	got := m.core.kvmFor(&mvm.KernelItem{PVMGuest: true})
	if got.Usable || got.Problem != host.KVMDenied {
		t.Errorf("with a PVM guest it is %+v", got)
	}
	if got := m.core.kvmFor(&mvm.KernelItem{}); got.Problem != kvm.Problem {
		t.Errorf("with another kernel it is %+v", got)
	}
	p := m.core.forKernel(m.core.firecracker("").Probe(context.Background()), &mvm.KernelItem{PVMGuest: true})
	if p.Usable || len(p.Problems) != 1 || p.Problems[0].What != host.KVMDenied.What || !p.Problems[0].Fatal {
		t.Errorf("Firecracker is %+v", p)
	}
}

// The default kernel decides what the host's status and check_kvm_access say.
func TestStatusOnAParavirtualKVM(t *testing.T) {
	m := onPVM(t, pvmHost)
	st, err := m.core.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check := func(usable bool, hypervisor string) {
		t.Helper()
		access, err := m.Host.CheckKVMAccess(t.Context())
		if err != nil || access.Accessible != usable || usable == (access.Reason != "") {
			t.Errorf("access is %+v, %v", access, err)
		}
		s, err := m.Host.Status(t.Context())
		if err != nil || s.KVMAccessible != usable || s.Hypervisor != hypervisor {
			t.Errorf("status is %+v, %v", s, err)
		}
	}
	check(false, "qemu")
	k := &mvm.KernelItem{ID: newID(), Name: "pvm", BaseName: "pvm", Version: "6.12", Arch: "x86_64", Type: kernelImported, Path: "kernels/pvm/vmlinux", IsDefault: true, PVMGuest: true}
	if err := st.InsertKernel(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	check(true, "firecracker")
}
