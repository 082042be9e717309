package firecracker

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// launch is a VM with everything.
func launch() vmm.Launch {
	return vmm.Launch{
		ID: "0123456789abcdef", Name: "web", Dir: "/c/vms/0123456789abcdef", Binary: "/c/bin/firecracker", Accel: "kvm",
		Kernel: "/c/kernels/vmlinux", Initrd: "/c/vms/0123456789abcdef/initrd", Cmdline: "net.ifnames=0 quiet",
		VCPUs: 2, MemMiB: 512, PCI: true, Agent: true, Logging: true, LogLevel: "Warn", Metrics: true,
		Disks:       []vmm.Disk{{ID: "rootfs", Path: "/c/vms/0123456789abcdef/rootfs.raw", Format: "raw"}, {ID: "vol-a1", Path: "/c/v.raw", Format: "raw", ReadOnly: true}},
		NICs:        []vmm.NIC{{ID: "eth0", Tap: "mvm-t0", MAC: "02:fc:00:00:00:01"}},
		CPUTemplate: json.RawMessage(`{"cpuid_modifiers":[]}`),
		Files: vmm.Files{
			API: "firecracker.api.socket", Config: "firecracker.json", Log: "firecracker.log", Console: "c.log",
			ConsoleSocket: "console.sock", Metrics: "firecracker.metrics", PID: "firecracker.pid", Agent: "agent.sock",
		},
	}
}

// everything is a VM with what else there is.
func everything() vmm.Launch {
	l := launch()
	some := vmm.RateLimit{BytesPerSec: 1 << 20, OpsPerSec: 100, BurstBytes: 512}
	l.Disks[0].Limit, l.Disks[1].Limit, l.Disks[0].AsyncIO = some, vmm.RateLimit{OpsPerSec: 5}, true
	l.NICs[0].RX, l.NICs[0].TX, l.NICs[0].MTU = some, vmm.RateLimit{BytesPerSec: 7}, 1400
	l.Balloon = &vmm.Balloon{MiB: 64, DeflateOnOOM: true, StatsSec: 5}
	l.Metadata = json.RawMessage(`{"secret": "s3cret"}`)
	l.HugePages, l.TrackDirty = true, true
	return l
}

const everythingRendered = `{
  "drives": [{
      "drive_id": "rootfs",
      "path_on_host": "rootfs.raw",
      "is_root_device": false,
      "cache_type": "Writeback",
      "io_engine": "Async",
      "rate_limiter": {
        "bandwidth": {
          "size": 1048576,
          "one_time_burst": 512,
          "refill_time": 1000
        },
        "ops": {
          "size": 100,
          "refill_time": 1000
        }
      }
    },{
      "drive_id": "vol_a1",
      "path_on_host": "disk-vol_a1",
      "is_root_device": false,
      "is_read_only": true,
      "cache_type": "Writeback",
      "io_engine": "Sync",
      "rate_limiter": {
        "ops": {
          "size": 5,
          "refill_time": 1000
        }
      }
    }],
  "network-interfaces": [{
      "iface_id": "eth0",
      "host_dev_name": "mvm-t0",
      "guest_mac": "02:fc:00:00:00:01",
      "mtu": 1400,
      "rx_rate_limiter": {
        "bandwidth": {
          "size": 1048576,
          "one_time_burst": 512,
          "refill_time": 1000
        },
        "ops": {
          "size": 100,
          "refill_time": 1000
        }
      },
      "tx_rate_limiter": {
        "bandwidth": {
          "size": 7,
          "refill_time": 1000
        }
      }
    }],
  "machine-config": {
    "vcpu_count": 2,
    "mem_size_mib": 512,
    "smt": false,
    "track_dirty_pages": true,
    "huge_pages": "2M"
  },
  "balloon": {
    "amount_mib": 64,
    "deflate_on_oom": true,
    "stats_polling_interval_s": 5
  },
  "mmds-config": {
    "version": "V2",
    "network_interfaces": [
      "eth0"
    ]
  }}`

func TestRenderEverything(t *testing.T) {
	r, err := (&Driver{}).Render(everything())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.Argv, " "); !strings.Contains(got, " --metadata metadata.json") {
		t.Errorf("argv is %s", got)
	}
	var got, want struct {
		Drives  []json.RawMessage `json:"drives"`
		NICs    []json.RawMessage `json:"network-interfaces"`
		Machine json.RawMessage   `json:"machine-config"`
		Balloon json.RawMessage   `json:"balloon"`
		MMDS    json.RawMessage   `json:"mmds-config"`
	}
	if err := json.Unmarshal(r.Config, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(everythingRendered), &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the configuration differs:\n%s", d)
	}
	if strings.Contains(string(r.Config)+strings.Join(r.Argv, ""), "s3cret") {
		t.Error("metadata is in the configuration or on the command line")
	}
}

// A VM that is continued has no configuration: what is kept is the request.
func TestRenderRestore(t *testing.T) {
	l := launch()
	l.Restore = &vmm.Restore{State: "/s/state", Mem: "/s/mem", Resume: true}
	l.Kernel, l.Initrd, l.TrackDirty = "", "", true
	r, err := (&Driver{}).Render(l)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.Argv, " "); strings.Contains(got, "--config-file") || !strings.Contains(got, "--log-path firecracker.log.pipe") {
		t.Errorf("argv is %s", got)
	}
	want := SnapshotLoad{
		State: "/s/state", Mem: MemBackend{Type: "File", Path: "/s/mem"}, TrackDirty: true,
		NICs: []NetworkOverride{{ID: "eth0", Tap: "mvm-t0"}}, Vsock: &VsockOverride{Path: "agent.sock"},
	}
	var got SnapshotLoad
	if err := json.Unmarshal(r.Config, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the request differs:\n%s", d)
	}
	if err := spec(t).CheckAs("SnapshotLoadParams", r.Config); err != nil {
		t.Error(err)
	}
}

func TestRender(t *testing.T) {
	r, err := (&Driver{}).Render(launch())
	if err != nil {
		t.Fatal(err)
	}
	wantArgv := strings.Fields("/c/bin/firecracker --id mvm-0123456789abcdef --api-sock firecracker.api.socket --config-file firecracker.json" +
		" --log-path firecracker.log.pipe --level Warning --show-level --metrics-path firecracker.metrics.pipe --enable-pci")
	if d := cmp.Diff(wantArgv, r.Argv); d != "" {
		t.Errorf("argv differs:\n%s", d)
	}
	want := `{
  "boot-source": {
    "kernel_image_path": "/c/kernels/vmlinux",
    "initrd_path": "/c/vms/0123456789abcdef/initrd",
    "boot_args": "net.ifnames=0 quiet console=ttyS0 reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd"
  },
  "drives": [
    {
      "drive_id": "rootfs",
      "path_on_host": "rootfs.raw",
      "is_root_device": false,
      "cache_type": "Writeback",
      "io_engine": "Sync"
    },
    {
      "drive_id": "vol_a1",
      "path_on_host": "disk-vol_a1",
      "is_root_device": false,
      "is_read_only": true,
      "cache_type": "Writeback",
      "io_engine": "Sync"
    }
  ],
  "machine-config": {
    "vcpu_count": 2,
    "mem_size_mib": 512,
    "smt": false,
    "track_dirty_pages": false
  },
  "cpu-config": {
    "cpuid_modifiers": []
  },
  "network-interfaces": [
    {
      "iface_id": "eth0",
      "host_dev_name": "mvm-t0",
      "guest_mac": "02:fc:00:00:00:01"
    }
  ],
  "vsock": {
    "guest_cid": 3,
    "uds_path": "agent.sock"
  },
  "entropy": {},
  "logger": {
    "level": "Warning",
    "show_level": true
  }
}
`
	if d := cmp.Diff(want, string(r.Config)); d != "" {
		t.Errorf("configuration differs:\n%s", d)
	}
	guest := vmm.GuestChannel{Kind: "vsock-uds", Path: "/c/vms/0123456789abcdef/agent.sock", CID: 3}
	if d := cmp.Diff(vmm.Rendered{Dir: launch().Dir, Guest: guest, APISocket: launch().Dir + "/firecracker.api.socket"},
		vmm.Rendered{Dir: r.Dir, Guest: r.Guest, APISocket: r.APISocket}); d != "" {
		t.Errorf("the rest differs:\n%s", d)
	}
}

func TestRenderLess(t *testing.T) {
	l := launch()
	l.PCI, l.Agent, l.Logging, l.Metrics, l.CPUTemplate, l.Initrd, l.Disks, l.NICs = false, false, false, false, nil, "", nil, nil
	r, err := (&Driver{}).Render(l)
	if err != nil {
		t.Fatal(err)
	}
	var cfg Config
	if err := json.Unmarshal(r.Config, &cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.Drives == nil || cfg.Vsock != nil || cfg.Logger != nil || cfg.Metrics != nil || cfg.CPU != nil || cfg.BootSource.Initrd != "" {
		t.Errorf("got %+v", cfg)
	}
	if got := strings.Join(r.Argv[7:], " "); got != "--log-path /dev/null --level Off" {
		t.Errorf("argv ends in %q", got)
	}
}

func TestRootDevice(t *testing.T) {
	tests := []struct {
		initrd, cmdline string
		want            bool
	}{
		{"/i", "quiet", false}, {"", "quiet", true}, {"", "root=/dev/vdb", false}, {"", "quiet root=/dev/vdb", false}, {"", "xroot=1", true},
	}
	for _, tt := range tests {
		l := launch()
		l.Initrd, l.Cmdline = tt.initrd, tt.cmdline
		if cfg := configOf(l); cfg.Drives[0].Root != tt.want || cfg.Drives[1].Root {
			t.Errorf("%+v: root %v", tt, cfg.Drives[0].Root)
		}
	}
}

func TestCmdline(t *testing.T) {
	tests := []struct{ given, want string }{
		{"", cmdlineExtra},
		{"a=1", "a=1 " + cmdlineExtra},
		{"console=hvc0 panic=9", "console=hvc0 panic=9 reboot=k i8042.noaux i8042.nomux i8042.dumbkbd"},
		{cmdlineExtra, cmdlineExtra},
	}
	for _, tt := range tests {
		if got := cmdline(tt.given); got != tt.want {
			t.Errorf("cmdline(%q) = %q, want %q", tt.given, got, tt.want)
		}
	}
}

// TestConfigIsInTheDescription holds the file, and each of its sections, to
// Firecracker's OpenAPI description.
func TestConfigIsInTheDescription(t *testing.T) {
	s := spec(t)
	cfg := configOf(everything())
	cfg.Balloon.FreePageReporting, cfg.MMDS.Address = true, "169.254.169.254"
	cfg.Metrics = &Metrics{Path: "m"}
	data, err := marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CheckConfig(data); err != nil {
		t.Errorf("the file: %v", err)
	}
	sections := map[string]any{
		"BootSource": cfg.BootSource, "Drive": cfg.Drives[0], "MachineConfiguration": cfg.Machine, "CpuConfig": cfg.CPU,
		"NetworkInterface": cfg.NICs[0], "Vsock": cfg.Vsock, "EntropyDevice": Entropy{limiter}, "Logger": cfg.Logger,
		"Metrics": cfg.Metrics, "Balloon": cfg.Balloon, "MmdsConfig": cfg.MMDS,
	}
	for name, v := range sections {
		part, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.CheckAs(name, part); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	tests := []struct {
		field  string
		change func(*vmm.Launch)
		kind   mvm.Kind
	}{
		{"disk rootfs", func(l *vmm.Launch) { l.Disks[0].Format = "qcow2" }, mvm.ErrUnsupported},
		{"disk", func(l *vmm.Launch) { l.Disks[1].ID = "rootfs" }, mvm.ErrInvalid},
		{"disk rootfs", func(l *vmm.Launch) { l.Disks[0].Path = "rootfs.raw" }, mvm.ErrInvalid},
		{"device id", func(l *vmm.Launch) { l.Disks[1].ID = "a/b" }, mvm.ErrInvalid},
		{"device id", func(l *vmm.Launch) { l.NICs[0].ID = "" }, mvm.ErrInvalid},
		{"nic", func(l *vmm.Launch) { l.NICs = append(l.NICs, l.NICs[0]) }, mvm.ErrInvalid},
		{"vcpu", func(l *vmm.Launch) { l.VCPUs = 33 }, mvm.ErrUnsupported},
		{"vcpu", func(l *vmm.Launch) { l.VCPUs = 0 }, mvm.ErrInvalid},
		{"mem", func(l *vmm.Launch) { l.MemMiB = 0 }, mvm.ErrInvalid},
		{"kernel", func(l *vmm.Launch) { l.Kernel = "" }, mvm.ErrInvalid},
		{"accel tcg", func(l *vmm.Launch) { l.Accel = "tcg" }, mvm.ErrUnsupported},
		{"boot_args", func(l *vmm.Launch) { l.Cmdline = "a\nb" }, mvm.ErrInvalid},
		{"boot_args", func(l *vmm.Launch) { l.Cmdline = strings.Repeat("x", maxCmdline) }, mvm.ErrUnsupported},
		{"cpu_config", func(l *vmm.Launch) { l.CPUTemplate = json.RawMessage("no JSON") }, mvm.ErrInvalid},
		{"cpu_config", func(l *vmm.Launch) { l.CPUTemplate = json.RawMessage("null") }, mvm.ErrInvalid},
		{"cpu_config", func(l *vmm.Launch) { l.CPUTemplate = json.RawMessage(`{"cpus":4}`) }, mvm.ErrInvalid},
		{"id", func(l *vmm.Launch) { l.ID = "a_b" }, mvm.ErrInvalid},
		{"files.config", func(l *vmm.Launch) { l.Files.Config = "--no-api" }, mvm.ErrInvalid},
		{"id", func(l *vmm.Launch) { l.ID = strings.Repeat("a", 61) }, mvm.ErrInvalid},
		{"dir", func(l *vmm.Launch) { l.Dir = "relative" }, mvm.ErrInvalid},
		{"mtu", func(l *vmm.Launch) { l.NICs[0].MTU = 67 }, mvm.ErrInvalid},
		{"limit", func(l *vmm.Launch) { l.NICs[0].RX.OpsPerSec = -1 }, mvm.ErrInvalid},
		{"limit", func(l *vmm.Launch) { l.Disks[0].Limit.BurstBytes = 1 }, mvm.ErrInvalid},
		{"mem", func(l *vmm.Launch) { l.HugePages, l.MemMiB = true, 511 }, mvm.ErrInvalid},
		{"huge_pages", func(l *vmm.Launch) { l.HugePages, l.Restore = true, &vmm.Restore{State: "/s", Mem: "/m"} }, mvm.ErrUnsupported},
		{"restore", func(l *vmm.Launch) { l.Restore = &vmm.Restore{State: "s", Mem: "/m"} }, mvm.ErrInvalid},
		{"balloon", func(l *vmm.Launch) { l.Balloon = &vmm.Balloon{MiB: 513} }, mvm.ErrInvalid},
		{"balloon", func(l *vmm.Launch) { l.Balloon = &vmm.Balloon{StatsSec: -1} }, mvm.ErrInvalid},
		{"metadata", func(l *vmm.Launch) { l.Metadata, l.NICs = json.RawMessage(`{}`), nil }, mvm.ErrUnsupported},
		{"metadata", func(l *vmm.Launch) { l.Metadata = json.RawMessage(`"x"`) }, mvm.ErrInvalid},
		{"files.api", func(l *vmm.Launch) { l.Files.API = "../api" }, mvm.ErrInvalid},
		{"files.agent", func(l *vmm.Launch) { l.Files.Agent = "" }, mvm.ErrInvalid},
	}
	for _, tt := range tests {
		l := launch()
		tt.change(&l)
		_, err := (&Driver{}).Render(l)
		if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.field) || mvm.HintOf(err) == "" {
			t.Errorf("%s: got %v (hint %q), want kind %q", tt.field, err, mvm.HintOf(err), tt.kind)
		}
	}
}

// FuzzRender looks for launches that make a configuration which is no JSON, or
// that smuggle in arguments.
func FuzzRender(f *testing.F) {
	f.Add("0123456789abcdef", "quiet", "rootfs", "tap0", "api.sock", 1)
	f.Add("--help", "a\"b\\", "../x", "", "--no-seccomp", 0)
	f.Fuzz(func(t *testing.T, id, cmdline, disk, tap, api string, vcpus int) {
		l := launch()
		l.ID, l.Cmdline, l.Disks[0].ID, l.NICs[0].Tap, l.Files.API, l.VCPUs = id, cmdline, disk, tap, api, vcpus
		r, err := (&Driver{}).Render(l)
		if err != nil {
			if mvm.HintOf(err) == "" {
				t.Errorf("no hint: %v", err)
			}
			return
		}
		var cfg Config
		if err := json.Unmarshal(r.Config, &cfg); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(cfg.BootSource.Args, strings.TrimSpace(cmdline)) || cfg.Machine.VCPUs != vcpus {
			t.Errorf("%q became %q", cmdline, cfg.BootSource.Args)
		}
		if len(r.Argv) != 15 {
			t.Errorf("argv %q", r.Argv)
		}
		for _, name := range []string{r.Argv[2], r.Argv[4]} {
			if strings.HasPrefix(name, "--") {
				t.Errorf("argv %q has an option for a value", r.Argv)
			}
		}
	})
}
