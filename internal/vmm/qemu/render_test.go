package qemu

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

var update = flag.Bool("update", false, "write the golden files")

// pure returns a driver that looks at nothing of this machine.
func pure() *Driver {
	return New(Options{TSCKHz: func() uint64 { return 2_500_000 }, Seccomp: func() bool { return true }, Firmware: func(string) string { return "/share/qboot.rom" }})
}

func launch() vmm.Launch {
	return vmm.Launch{
		ID: "0123456789abcdef", Name: "web", Dir: "/vms/0123456789abcdef", Binary: "/usr/bin/qemu-system-x86_64", Accel: "kvm",
		Kernel: "/kernels/vmlinux", Initrd: "/vms/0123456789abcdef/initrd", Cmdline: "net.ifnames=0 quiet", VCPUs: 2, MemMiB: 512,
		Disks: []vmm.Disk{{ID: "rootfs", Path: "/vms/0123456789abcdef/rootfs.qcow2", Format: "qcow2"}},
		NICs:  []vmm.NIC{{ID: "eth0", Tap: "mvm01234567", MAC: "02:00:00:00:00:01"}},
		Agent: true,
		Files: vmm.Files{API: "qmp.sock", Config: "qemu.json", Log: "qemu.log", Console: "console.log", ConsoleSocket: "console.sock", PID: "pid", Agent: "agent.sock"},
	}
}

func TestRenderGolden(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*vmm.Launch)
	}{
		{"kvm", func(*vmm.Launch) {}},
		{"tcg", func(l *vmm.Launch) { l.Accel = "tcg" }},
		{"nested", func(l *vmm.Launch) { l.Accel, l.Nested = "tcg", true }},
		{"bare", func(l *vmm.Launch) { l.Initrd, l.Cmdline, l.Disks, l.NICs, l.Agent = "", "", nil, nil, false }},
		{"own_words", func(l *vmm.Launch) { l.Accel, l.Cmdline = "tcg", "console=ttyS1  tsc_early_khz=7 fips=1 quiet" }},
		{"restored", func(l *vmm.Launch) {
			l.Accel, l.Kernel, l.Initrd, l.Cmdline = "tcg", "", "", ""
			l.Restore = &vmm.Restore{State: "/s/state", Mem: "/s/mem"}
		}},
		{"memory", func(l *vmm.Launch) {
			l.HugePages, l.Balloon = true, &vmm.Balloon{MiB: 64, DeflateOnOOM: true, StatsSec: 5}
		}},
		{"many", func(l *vmm.Launch) {
			l.Disks = append(l.Disks, vmm.Disk{ID: "vol-a", Path: "/data/a,b=c.raw", Format: "raw", ReadOnly: true})
			l.NICs = append(l.NICs, vmm.NIC{ID: "eth1", Tap: "mvm1", MAC: "02:00:00:00:00:02"})
			l.Kernel, l.Initrd = "/k,1/vmlinux", "/i,1/initrd"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := launch()
			c.change(&l)
			r, err := pure().Render(l)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(r.Argv, "\n") + "\n"
			path := filepath.Join("testdata", c.name+".argv")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("argv (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRenderSockets(t *testing.T) {
	l := launch()
	r, err := pure().Render(l)
	if err != nil {
		t.Fatal(err)
	}
	want := vmm.Rendered{Argv: r.Argv, Dir: l.Dir, APISocket: l.Dir + "/qmp.sock", Guest: vmm.GuestChannel{Kind: "mux", Path: l.Dir + "/agent.sock"}}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("Render (-want +got):\n%s", diff)
	}
}

// What QEMU cannot do or would misread is refused, by name and with a way out.
func TestRenderRefuses(t *testing.T) {
	for _, c := range []struct {
		field  string
		kind   mvm.Kind
		change func(*vmm.Launch)
	}{
		{"cpu_config", mvm.ErrUnsupported, func(l *vmm.Launch) { l.CPUTemplate = json.RawMessage("{}") }},
		{"jailer", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Jail = &vmm.Jail{Jailer: "/bin/jailer"} }},
		{"enable_metrics", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Metrics = true }},
		{"accel", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Accel = "tcg,thread=single" }},
		{"accel", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Accel = "" }},
		{"vcpu", mvm.ErrInvalid, func(l *vmm.Launch) { l.VCPUs = 0 }},
		{"vcpu", mvm.ErrUnsupported, func(l *vmm.Launch) { l.VCPUs = 256 }},
		{"mem", mvm.ErrInvalid, func(l *vmm.Launch) { l.MemMiB = 0 }},
		{"mem", mvm.ErrUnsupported, func(l *vmm.Launch) { l.MemMiB = 1 << 30 }},
		{"id", mvm.ErrInvalid, func(l *vmm.Launch) { l.ID = "a,debug-threads=on" }},
		{"id", mvm.ErrInvalid, func(l *vmm.Launch) { l.ID = "" }},
		{"id", mvm.ErrInvalid, func(l *vmm.Launch) { l.ID = "-a" }},
		{"name", mvm.ErrInvalid, func(l *vmm.Launch) { l.Name = "a b" }},
		{"dir", mvm.ErrInvalid, func(l *vmm.Launch) { l.Dir = "vms" }},
		{"binary", mvm.ErrInvalid, func(l *vmm.Launch) { l.Binary = "qemu" }},
		{"kernel", mvm.ErrInvalid, func(l *vmm.Launch) { l.Kernel = "" }},
		{"initrd", mvm.ErrInvalid, func(l *vmm.Launch) { l.Initrd = "-initrd" }},
		{"boot_args", mvm.ErrInvalid, func(l *vmm.Launch) { l.Cmdline = "a\nb" }},
		{"boot_args", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Cmdline = strings.Repeat("x", 2048) }},
		{"files.api", mvm.ErrInvalid, func(l *vmm.Launch) { l.Files.API = "../qmp" }},
		{"files.api", mvm.ErrInvalid, func(l *vmm.Launch) { l.Files.API = agentDevice }},
		{"files.agent", mvm.ErrInvalid, func(l *vmm.Launch) { l.Files.Agent = "" }},
		{"disk", mvm.ErrInvalid, func(l *vmm.Launch) { l.Disks[0].ID = "a,b" }},
		{"disk", mvm.ErrInvalid, func(l *vmm.Launch) { l.Disks = append(l.Disks, l.Disks[0]) }},
		{"disk rootfs", mvm.ErrInvalid, func(l *vmm.Launch) { l.Disks[0].Path = "json:{}" }},
		{"disk rootfs", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Disks[0].Format = "" }},
		{"disk rootfs", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Disks[0].Format = "vmdk" }},
		{"nic eth0", mvm.ErrInvalid, func(l *vmm.Launch) { l.NICs[0].Tap = "tap0,script=/bin/x" }},
		{"nic eth0", mvm.ErrInvalid, func(l *vmm.Launch) { l.NICs[0].Tap = "sixteen-chars-01" }},
		{"nic eth0", mvm.ErrInvalid, func(l *vmm.Launch) { l.NICs[0].MAC = "01:00:00:00:00:01" }},
		{"nic eth0", mvm.ErrInvalid, func(l *vmm.Launch) { l.NICs[0].MAC = "" }},
		{"NICs", mvm.ErrUnsupported, func(l *vmm.Launch) { l.NICs = slices.Repeat(l.NICs, 30) }},
		{"limit of nic eth0", mvm.ErrUnsupported, func(l *vmm.Launch) { l.NICs[0].TX.OpsPerSec = 1 }},
		{"disks", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Disks = manyDisks(maxDisks + 1) }},
		{"disk rootfs", mvm.ErrInvalid, func(l *vmm.Launch) { l.Disks[0].Limit.BytesPerSec = -1 }},
		{"disk rootfs", mvm.ErrInvalid, func(l *vmm.Launch) { l.Disks[0].Limit.BurstBytes = 1 }},
		{"disk rootfs", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Disks[0].Limit.OpsPerSec = 1 << 62 }},
		{"metadata", mvm.ErrUnsupported, func(l *vmm.Launch) { l.Metadata = json.RawMessage("{}") }},
		{"track_dirty", mvm.ErrUnsupported, func(l *vmm.Launch) { l.TrackDirty = true }},
		{"huge_pages", mvm.ErrInvalid, func(l *vmm.Launch) { l.HugePages, l.MemMiB = true, 129 }},
		{"balloon", mvm.ErrInvalid, func(l *vmm.Launch) { l.Balloon = &vmm.Balloon{MiB: 513} }},
		{"balloon", mvm.ErrInvalid, func(l *vmm.Launch) { l.Balloon = &vmm.Balloon{StatsSec: -1} }},
		{"snapshot", mvm.ErrInvalid, func(l *vmm.Launch) { l.Restore = &vmm.Restore{State: "state", Mem: "/mem"} }},
		{"snapshot", mvm.ErrInvalid, func(l *vmm.Launch) { l.Restore = &vmm.Restore{State: "/state", Mem: "-mem"} }},
	} {
		l := launch()
		c.change(&l)
		_, err := pure().Render(l)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.field) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q), want %v that names it, and a hint", c.field, err, mvm.HintOf(err), c.kind)
		}
	}
}

// manyDisks are n disks.
func manyDisks(n int) []vmm.Disk {
	var disks []vmm.Disk
	for i := range n {
		disks = append(disks, vmm.Disk{ID: fmt.Sprintf("vol-%d", i), Path: fmt.Sprintf("/d/%d", i), Format: "raw"})
	}
	return disks
}

// As many devices as are allowed have each a place of their own.
func TestRenderMostDevices(t *testing.T) {
	l := launch()
	l.Disks, l.NICs, l.Balloon = manyDisks(maxDisks), slices.Repeat(l.NICs, maxNICs), &vmm.Balloon{}
	r, err := pure().Render(l)
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]int{}
	for i, a := range r.Argv {
		if a != "-device" || strings.HasPrefix(r.Argv[i+1], "virtserialport") {
			continue
		}
		var at string
		for _, o := range options(r.Argv[i+1]) {
			if strings.HasPrefix(o, "bus=") || strings.HasPrefix(o, "addr=") {
				at += o + " "
			}
		}
		places[at]++
	}
	want := maxPorts + maxDisks + maxNICs + 3 // agent, balloon, random numbers
	if len(places) != want || places["bus=pcie.0 addr=1f.0 "] > 0 {
		t.Errorf("%d places for %d devices: %v", len(places), want, places)
	}
}

// What the host lacks is left out.
func TestRenderOnAPoorHost(t *testing.T) {
	l := launch()
	l.Accel = "tcg"
	d := New(Options{TSCKHz: func() uint64 { return 0 }, Seccomp: func() bool { return false }, Firmware: func(string) string { return "" }})
	r, err := d.Render(l)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(r.Argv, " ")
	for _, word := range []string{"-sandbox", "-bios", "tsc_early_khz"} {
		if strings.Contains(all, word) {
			t.Errorf("argv has %s: %s", word, all)
		}
	}
}

func TestFindQboot(t *testing.T) {
	dir := t.TempDir()
	if got := findQboot(filepath.Join(dir, "bin", program)); strings.HasPrefix(got, dir) {
		t.Errorf("findQboot = %q in an empty directory", got)
	}
	rom := filepath.Join(dir, "share", "qemu", "qboot.rom")
	if err := errors.Join(os.MkdirAll(filepath.Dir(rom), 0o700), os.WriteFile(rom, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := findQboot(filepath.Join(dir, "bin", program)); got != rom {
		t.Errorf("findQboot = %q, want %q", got, rom)
	}
}

// options splits an argument as QEMU does (get_opt_value in util/qemu-option.c).
func options(arg string) []string {
	var out []string
	var b strings.Builder
	for i := 0; i < len(arg); i++ {
		switch {
		case arg[i] != ',':
			b.WriteByte(arg[i])
		case i+1 < len(arg) && arg[i+1] == ',':
			b.WriteByte(',')
			i++
		default:
			out = append(out, b.String())
			b.Reset()
		}
	}
	return append(out, b.String())
}

// keysOf returns the options and their keys, without values.
func keysOf(argv []string) [][]string {
	var shape [][]string
	for i := 1; i < len(argv); i++ {
		switch argv[i-1] {
		case "-blockdev", "-object", "-device", "-netdev", "-chardev", "-name", "-qmp", "-machine", "-accel":
			var keys []string
			for _, o := range options(argv[i]) {
				k, _, _ := strings.Cut(o, "=")
				keys = append(keys, k)
			}
			shape = append(shape, keys)
		}
	}
	return shape
}

// No value can add an option, or an argument, to those of a harmless launch.
func FuzzRender(f *testing.F) {
	for _, s := range []string{"a", "/x,readonly=on", ",,", "a,", "-monitor", "tap0,script=x", "\n-drive", "0123,x=y", "/a=b,,c"} {
		f.Add(s, s, s, s, s, s, s)
		f.Add("id", "name", "/d/"+s, "tap0", "02:00:00:00:00:01", s, "/k"+s)
	}
	f.Fuzz(func(t *testing.T, id, name, path, tap, mac, cmdline, kernel string) {
		l := launch()
		want, err := pure().Render(l)
		if err != nil {
			t.Fatal(err)
		}
		l.ID, l.Name, l.Cmdline, l.Kernel, l.Initrd = id, name, cmdline, kernel, path
		l.Disks[0].Path, l.NICs[0].Tap, l.NICs[0].MAC = path, tap, mac
		got, err := pure().Render(l)
		if err != nil {
			if mvm.HintOf(err) == "" {
				t.Errorf("%v: no hint", err)
			}
			return
		}
		if len(got.Argv) != len(want.Argv) && name != "" {
			t.Fatalf("argv has %d arguments in place of %d: %q", len(got.Argv), len(want.Argv), got.Argv)
		}
		shape, wantShape := keysOf(got.Argv), keysOf(want.Argv)
		if name == "" {
			wantShape[0] = []string{"guest"}
		}
		if diff := cmp.Diff(wantShape, shape); diff != "" {
			t.Errorf("options (-want +got):\n%s", diff)
		}
		for i, a := range got.Argv {
			if a == "-blockdev" && !slices.Contains(options(got.Argv[i+1]), "file.filename="+path) {
				t.Errorf("%q does not mean the file %q", got.Argv[i+1], path)
			}
		}
	})
}
