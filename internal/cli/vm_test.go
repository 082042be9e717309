package cli

import (
	"testing"
	"time"

	"github.com/mvmctl/mvm"
)

func TestVMTable(t *testing.T) {
	vms := []*mvm.VMInstanceItem{
		{
			ID: "0123456789abcdef", Name: "web", Status: mvm.StatusRunning, VCPUCount: 2, MemSizeMiB: 512, IPv4: "172.27.0.2", MAC: "02:fc:00:00:00:01",
			Hypervisor: "qemu", Accel: "tcg", CreatedAt: "2026-03-01T11:58:00Z", PID: 4711, TapDevice: "mvm-web",
			Image: &mvm.ImageItem{Type: "debian", Version: "12"}, Kernel: &mvm.KernelItem{Type: "debian", Version: "6.1.0"}, Network: &mvm.NetworkItem{Name: "default"},
		},
		{ID: "fedcba9876543210", Name: "db", Status: mvm.StatusCrashed, VCPUCount: 1, MemSizeMiB: 3072, ImageID: "aaaaaaaaaaaaaaaaaaaa", CreatedAt: "2026-02-01T12:00:00Z"},
	}
	a, stdout, _ := testApp()
	a.out.Now = func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }
	for _, long := range []bool{false, true} {
		if err := a.out.Table(vmTable(a.out, vms, long)); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "vm_ls.txt", stdout.String())
}
