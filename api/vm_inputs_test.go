package api

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/vmm"
)

// planned is all that follows from an input before anything is done.
type planned struct {
	*vmPlan
	launch vmm.Launch
	boot   guest.BootConfig
}

// inputEffect has for a field field of VMCreateInput a value that is not the default,
// and what shows that it was heeded. Those without are seen elsewhere: in the test
// that is named.
type inputEffect struct {
	set   func(*VMCreateInput)
	shows func(planned) bool
	seen  string
}

var inputEffects = map[string]inputEffect{
	"Name":        {func(in *VMCreateInput) { in.Name = "db" }, func(p planned) bool { return p.item.Name == "db" && p.boot.Hostname == "db" && p.launch.Name == "db" }, ""},
	"SSHKeys":     {func(in *VMCreateInput) { in.SSHKeys = []string{"second"} }, func(p planned) bool { return len(p.boot.SSH.AuthorizedKeys) == 1 && p.item.SSHKeys[0] == "second" }, ""},
	"Image":       {func(in *VMCreateInput) { in.Image = "tiny:2" }, func(p planned) bool { return p.image.Version == "2" && p.item.ImageID == p.image.ID }, ""},
	"KernelID":    {func(in *VMCreateInput) { in.KernelID = "tiny:6.2" }, func(p planned) bool { return strings.HasSuffix(p.launch.Kernel, "/two/vmlinux") }, ""},
	"VCPUCount":   {func(in *VMCreateInput) { in.VCPUCount = ptr(2) }, func(p planned) bool { return p.launch.VCPUs == 2 }, ""},
	"MemSizeMiB":  {func(in *VMCreateInput) { in.MemSizeMiB = ptr(256) }, func(p planned) bool { return p.launch.MemMiB == 256 }, ""},
	"NetworkName": {func(in *VMCreateInput) { in.NetworkName = "lab" }, func(p planned) bool { return p.network.Name == "lab" && p.boot.Network.Gateway == "10.99.0.1" }, ""},
	"CloudInitMode": {func(in *VMCreateInput) { in.CloudInitMode = mvm.CloudInitInject }, func(p planned) bool {
		return p.item.CloudInitMode == mvm.CloudInitInject && p.item.Options.CloudInit != nil
	}, ""},
	"User":             {func(in *VMCreateInput) { in.User = "debian" }, func(p planned) bool { return p.boot.SSH.User == "debian" }, ""},
	"DiskSize":         {func(in *VMCreateInput) { in.DiskSize = "3G" }, func(p planned) bool { return p.item.DiskSizeMiB == 3072 }, ""},
	"RequestedGuestIP": {func(in *VMCreateInput) { in.RequestedGuestIP = "172.27.0.77" }, func(p planned) bool { return p.wantIP.String() == "172.27.0.77" }, ""},
	"RequestedMAC": {func(in *VMCreateInput) { in.RequestedMAC = "02:fc:00:00:00:77" }, func(p planned) bool {
		return p.launch.NICs[0].MAC == "02:FC:00:00:00:77" && p.boot.Network.MAC == "02:FC:00:00:00:77"
	}, ""},
	"PCIEnabled":     {func(in *VMCreateInput) { in.PCIEnabled = ptr(false) }, func(p planned) bool { return !p.launch.PCI }, ""},
	"NestedVirt":     {func(in *VMCreateInput) { in.NestedVirt = ptr(true) }, func(p planned) bool { return p.launch.Nested }, ""},
	"CPUConfig":      {func(in *VMCreateInput) { in.CPUConfig = json.RawMessage(`{"kvm_capabilities":["!56"]}`) }, func(p planned) bool { return string(p.launch.CPUTemplate) == `{"kvm_capabilities":["!56"]}` }, ""},
	"EnableLogging":  {func(in *VMCreateInput) { in.EnableLogging = ptr(false) }, func(p planned) bool { return !p.launch.Logging }, ""},
	"EnableMetrics":  {func(in *VMCreateInput) { in.EnableMetrics = ptr(true) }, func(p planned) bool { return p.launch.Metrics }, ""},
	"EnableConsole":  {func(in *VMCreateInput) { in.EnableConsole = ptr(true) }, func(p planned) bool { return p.item.EnableConsole }, ""},
	"LSMFlags":       {func(in *VMCreateInput) { in.LSMFlags = "landlock,yama" }, func(p planned) bool { return strings.HasSuffix(p.launch.Cmdline, " lsm=landlock,yama") }, ""},
	"BootArgs":       {func(in *VMCreateInput) { in.BootArgs = "a=b c" }, func(p planned) bool { return strings.HasSuffix(p.launch.Cmdline, " a=b c") }, ""},
	"FirecrackerBin": {func(in *VMCreateInput) { in.FirecrackerBin, in.Hypervisor = "/opt/fc", "firecracker" }, func(p planned) bool { return p.item.Options.FirecrackerBin == "/opt/fc" && p.probe.Path == "/opt/fc" }, ""},
	"BinaryID": {func(in *VMCreateInput) { in.BinaryID, in.Hypervisor = "firecracker:1.15.1", "firecracker" }, func(p planned) bool {
		return strings.HasSuffix(p.probe.Path, "bin/firecracker-v1.15.1") && p.item.BinaryID != ""
	}, ""},
	"SkipCleanup":         {seen: "TestSkipCleanup"},
	"SkipDeblob":          {func(in *VMCreateInput) { in.SkipDeblob = true }, func(p planned) bool { return !p.boot.Deblob }, ""},
	"Count":               {seen: "TestCreateSeveral"},
	"Atomic":              {seen: "TestCreateSeveral"},
	"Volumes":             {func(in *VMCreateInput) { in.Volumes = []string{"data:/srv"} }, func(p planned) bool { return len(p.launch.Disks) == 2 && p.boot.Volumes[0].Mount == "/srv" }, ""},
	"CustomUserData":      {func(in *VMCreateInput) { in.CustomUserData = userDataOfTest }, func(p planned) bool { return p.cloudInit.data != nil && p.item.CloudInitMode == mvm.CloudInitInject }, ""},
	"NocloudNetPort":      {func(in *VMCreateInput) { in.CloudInitMode, in.NocloudNetPort = mvm.CloudInitNet, ptr(8123) }, func(p planned) bool { return p.cloudInit.port == 8123 }, ""},
	"SkipCINetworkConfig": {func(in *VMCreateInput) { in.CloudInitMode, in.SkipCINetworkConfig = mvm.CloudInitInject, true }, func(p planned) bool { return p.item.Options.CloudInit.NoNetwork }, ""},
	"KeepCloudInitISO":    {func(in *VMCreateInput) { in.CloudInitMode, in.KeepCloudInitISO = mvm.CloudInitISO, true }, func(p planned) bool { return p.item.Options.CloudInit.KeepISO && len(p.launch.Disks) == 2 }, ""},
	"CloudInitISOPath": {func(in *VMCreateInput) { in.CloudInitISOPath = isoOfTest }, func(p planned) bool {
		return p.item.Options.CloudInit.OwnISO && p.item.CloudInitMode == mvm.CloudInitISO
	}, ""},
	"Hypervisor": {func(in *VMCreateInput) { in.Hypervisor = "firecracker" }, func(p planned) bool { return p.item.Hypervisor == "firecracker" }, ""},
	"Wait":       {seen: "TestStopWhileBooting and the tests of waiting"},
	"WaitLimit":  {seen: "TestWaitStopped"},
	"NoAgent":    {func(in *VMCreateInput) { in.NoAgent = true }, func(p planned) bool { return !p.launch.Agent && p.boot.Agent == nil }, ""},
	"NoJailer":   {func(in *VMCreateInput) { in.NoJailer = true }, func(p planned) bool { return p.item.Options.NoJailer && p.launch.Jail == nil }, ""},
	"VsockPort":  {func(in *VMCreateInput) { in.VsockPort = 5000 }, func(p planned) bool { return p.boot.Agent.Port == 5000 }, ""},
	"Writeback":  {func(in *VMCreateInput) { in.Writeback = true }, func(p planned) bool { return p.launch.Disks[0].Writeback }, ""},
	"HugePages":  {func(in *VMCreateInput) { in.HugePages = true }, func(p planned) bool { return p.launch.HugePages }, ""},
	"Balloon": {func(in *VMCreateInput) { in.Balloon = &mvm.VMBalloon{MiB: 64, DeflateOnOOM: true, StatsSec: 5} }, func(p planned) bool {
		return *p.launch.Balloon == vmm.Balloon{MiB: 64, DeflateOnOOM: true, StatsSec: 5}
	}, ""},
	"Metadata":  {func(in *VMCreateInput) { in.Metadata = json.RawMessage(`{"role":"web"}`) }, func(p planned) bool { return string(p.launch.Metadata) == `{"role":"web"}` }, ""},
	"DiskLimit": {func(in *VMCreateInput) { in.DiskLimit = &mvm.VMLimit{OpsPerSec: 9} }, func(p planned) bool { return p.launch.Disks[0].Limit.OpsPerSec == 9 }, ""},
	"NetLimit": {func(in *VMCreateInput) { in.NetLimit = &mvm.VMLimit{BytesPerSec: 9} }, func(p planned) bool {
		return p.item.Options.NetLimit != nil && p.item.Options.NetLimit.BytesPerSec == 9
	}, ""},
	"Egress":        {nil, nil, "TestEgressIsKept"},
	"DNSServer":     {func(in *VMCreateInput) { in.DNSServer = "10.1.2.3" }, func(p planned) bool { return p.item.DNSServer == "10.1.2.3" }, ""},
	"Entrypoint":    {nil, nil, "TestContainerImage of package e2e"},
	"Cmd":           {nil, nil, "TestContainerImage of package e2e"},
	"Env":           {nil, nil, "TestContainerImage of package e2e"},
	"NoEntrypoint":  {nil, nil, "TestContainerImage of package e2e"},
	"Isolate":       {func(in *VMCreateInput) { in.Isolate = true }, func(p planned) bool { return p.item.Options.Isolate }, ""},
	"Publish":       {func(in *VMCreateInput) { in.Publish = []string{"8080:80"} }, func(p planned) bool { return len(p.item.Options.Publish) == 1 }, ""},
	"RestartPolicy": {func(in *VMCreateInput) { in.RestartPolicy = mvm.RestartAlways }, func(p planned) bool { return p.item.Options.Restart == mvm.RestartAlways }, ""},
}

func ptr[T any](v T) *T { return &v }

// Files that inputs name; the test makes them.
var userDataOfTest, isoOfTest string

// Every field of the input does what it says, and nothing but that field does.
func TestEveryInput(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	image, kernel := w.stock(m)
	ctx := t.Context()
	w.fc = vmm.Probe{Usable: true, Accel: "kvm", Version: "1.16.1", Capabilities: w.driver.Probe(ctx).Capabilities}
	m.core.firecracker = func(binary string) vmm.Driver {
		probe := w.fc
		probe.Path = firstOf(binary, "/usr/bin/firecracker")
		return probed{Driver: w.driver, name: "firecracker", probe: probe}
	}
	w.set(m, "settings.vm", "hypervisor", "qemu")
	i, k := *image, *kernel
	i.ID, i.Version, i.IsDefault = newID(), "2", false
	k.ID, k.Version, k.Name, k.Path, k.IsDefault = newID(), "6.2", "vmlinux-tiny-6.2", "kernels/two/vmlinux", false
	w.file(m.core.paths.abs(k.Path), 1)
	fc := &mvm.BinaryItem{ID: newID(), Name: "firecracker", Version: "1.15.1", Path: "bin/firecracker-v1.15.1", IsPresent: true, CreatedAt: now(), UpdatedAt: now()}
	w.file(m.core.paths.abs(fc.Path), 1)
	userDataOfTest = filepath.Join(w.dir, "user-data")
	isoOfTest = ownISO(t)
	_, err1 := m.Key.Create(ctx, KeyCreateInput{Name: "second"})
	_, err2 := m.Network.Create(ctx, NetworkCreateInput{Name: "lab", Subnet: "10.99.0.0/24"})
	_, err3 := m.Volume.Create(ctx, VolumeCreateInput{Name: "data", Size: "1M"})
	for _, err := range []error{
		err1, err2, err3, m.core.st.InsertImage(ctx, &i), m.core.st.InsertKernel(ctx, &k), m.core.st.InsertBinary(ctx, fc),
		os.WriteFile(userDataOfTest, []byte("#cloud-config\nruncmd: [echo hello]\n"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	look := func(in VMCreateInput) planned {
		t.Helper()
		p, err := w.plan(m, in)
		if err != nil {
			t.Fatal(err)
		}
		is := planned{vmPlan: p, launch: p.launch()}
		if p.item.CloudInitMode == mvm.CloudInitOff { // else its documents have to be there
			if is.boot, err = p.bootConfig(); err != nil {
				t.Fatal(err)
			}
		}
		return is
	}
	plain := look(VMCreateInput{})
	for f := range reflect.TypeFor[VMCreateInput]().Fields() {
		if _, known := inputEffects[f.Name]; f.IsExported() && !known {
			t.Errorf("nothing shows what %s does", f.Name)
		}
	}
	for name, e := range inputEffects {
		if e.seen != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var in VMCreateInput
			e.set(&in)
			if !e.shows(look(in)) {
				t.Error("it was not heeded")
			}
			defer func() { _ = recover() }() // what shows it may not be there without it
			if e.shows(plain) {
				t.Error("without it the VM is the same")
			}
		})
	}
}
