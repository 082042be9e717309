// Package firecracker is the driver for Firecracker: it renders the
// configuration file, speaks the API on the unix socket, and finds a running VM
// again. It knows no store and no network: taps and disks are there already,
// and the process belongs to a supervisor.
package firecracker

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

const (
	maxVCPUs = 32 // MAX_SUPPORTED_VCPUS in Firecracker's source; maximum of vcpu_count in its OpenAPI description
	guestCID = 3  // the first that is free; each Firecracker is a world of its own

	// maxCmdline is Firecracker's CMDLINE_MAX_SIZE on x86 less what it may add
	// itself: the final zero, "pci=off" and "root=/dev/vda rw".
	maxCmdline = 2048 - 64

	// cmdlineExtra suits Firecracker's few devices: the serial console is the
	// only UART, a reboot through the keyboard controller ends the VM, and that
	// controller has a keyboard without mouse and multiplexer, whose probing
	// costs time (DEFAULT_KERNEL_CMDLINE in Firecracker's source).
	cmdlineExtra = "console=ttyS0 reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd"
)

// Render implements vmm.Driver. For a VM that is continued, the configuration is
// the request that loads it.
func (d *Driver) Render(l vmm.Launch) (vmm.Rendered, error) {
	if err := check(l); err != nil {
		return vmm.Rendered{}, err
	}
	seen, root, argv := l, l.Dir, argvOf(l)
	if l.Jail != nil {
		seen, root, argv = inside(l), jailRoot(l), jailArgv(l, argv)
	}
	var cfg any = configOf(seen)
	if l.Restore != nil {
		cfg = loadOf(seen)
	}
	data, err := marshal(cfg)
	if err != nil {
		return vmm.Rendered{}, mvm.Errorf(mvm.ErrInvalid, "the configuration: %w", err)
	}
	r := vmm.Rendered{
		Argv:      argv,
		Dir:       l.Dir,
		Config:    data,
		APISocket: filepath.Join(root, l.Files.API),
	}
	if l.Agent {
		r.Guest = vmm.GuestChannel{Kind: "vsock-uds", Path: filepath.Join(root, l.Files.Agent), CID: guestCID}
	}
	return r, nil
}

// marshal writes the configuration so that a person can read it: indented, and
// with '&' and '<' as they are.
func marshal(cfg any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(cfg)
	return b.Bytes(), err
}

// argvOf returns the command line. Sockets and files are relative to the VM's
// directory, because a unix socket's path is limited to 107 bytes. The log is
// set up here and not in the configuration file: until that is read, messages
// would go to stdout, which is the guest's console; and a VM that is continued has
// no such file. Log and metrics go to FIFOs, because Firecracker bounds neither.
func argvOf(l vmm.Launch) []string {
	argv := []string{l.Binary, "--id", supervisor.Token(l.ID), "--api-sock", l.Files.API}
	if l.Restore == nil {
		argv = append(argv, "--config-file", l.Files.Config)
	}
	if l.Logging {
		argv = append(argv, "--log-path", l.Files.Log+pipeSuffix, "--level", logLevel(l.LogLevel), "--show-level")
	} else {
		argv = append(argv, "--log-path", "/dev/null", "--level", "Off")
	}
	if l.Metrics {
		argv = append(argv, "--metrics-path", l.Files.Metrics+pipeSuffix)
	}
	if l.Metadata != nil {
		argv = append(argv, "--metadata", metadataFile)
	}
	if l.PCI {
		argv = append(argv, "--enable-pci")
	}
	return argv
}

const (
	pipeSuffix = ".pipe" // of the FIFO whose content goes to the file of that name

	// metadataFile holds the metadata until Firecracker has read it.
	metadataFile = "metadata.json"
)

func configOf(l vmm.Launch) Config {
	cfg := Config{
		BootSource: BootSource{Kernel: l.Kernel, Initrd: l.Initrd, Args: cmdline(l.Cmdline)},
		Drives:     []Drive{},
		Machine:    MachineConfig{VCPUs: l.VCPUs, MemMiB: l.MemMiB, TrackDirty: l.TrackDirty},
		CPU:        l.CPUTemplate,
		Entropy:    &Entropy{},
	}
	if l.HugePages {
		cfg.Machine.HugePages = "2M"
	}
	for i, disk := range l.Disks {
		// The root device would be put first and get "root=/dev/vda" on the
		// command line. The order is right already, and an initrd finds the
		// root by itself, as does a kernel that was told its root.
		root := i == 0 && l.Initrd == "" && !strings.Contains(" "+l.Cmdline, " root=")
		cfg.Drives = append(cfg.Drives, driveOf(l.Dir, disk, root))
	}
	for _, nic := range l.NICs {
		cfg.NICs = append(cfg.NICs, NetworkInterface{
			ID: deviceID(nic.ID), Tap: nic.Tap, MAC: nic.MAC, MTU: nic.MTU, RX: limiterOf(nic.RX), TX: limiterOf(nic.TX),
		})
	}
	if l.Agent {
		cfg.Vsock = &Vsock{CID: guestCID, Path: l.Files.Agent}
	}
	if l.Logging {
		// A configured logger without level falls back to Info.
		cfg.Logger = &Logger{Level: logLevel(l.LogLevel), ShowLevel: true}
	}
	if b := l.Balloon; b != nil {
		cfg.Balloon = &Balloon{AmountMiB: b.MiB, DeflateOnOOM: b.DeflateOnOOM, StatsIntervalSec: b.StatsSec}
	}
	if l.Metadata != nil {
		cfg.MMDS = &MMDSConfig{Version: "V2"}
		for _, nic := range cfg.NICs {
			cfg.MMDS.NICs = append(cfg.MMDS.NICs, nic.ID)
		}
	}
	return cfg
}

// loadOf is the request that continues a VM. It is left paused, so that it can be
// looked at first. Its tap devices and its socket are this launch's.
func loadOf(l vmm.Launch) SnapshotLoad {
	s := SnapshotLoad{State: l.Restore.State, Mem: MemBackend{Type: "File", Path: l.Restore.Mem}, TrackDirty: l.TrackDirty}
	for _, nic := range l.NICs {
		s.NICs = append(s.NICs, NetworkOverride{ID: deviceID(nic.ID), Tap: nic.Tap})
	}
	if l.Agent {
		s.Vsock = &VsockOverride{Path: l.Files.Agent}
	}
	return s
}

// driveOf renders one disk. The cache type is always Firecracker's "Writeback",
// which passes the guest's flushes on to the file: its default, "Unsafe", drops
// them, and nobody asked for that.
func driveOf(dir string, disk vmm.Disk, root bool) Drive {
	if served(disk) { // what is not given here is the server's
		return Drive{ID: deviceID(disk.ID), Socket: socketName(disk), CacheType: "Writeback"}
	}
	d := Drive{
		ID: deviceID(disk.ID), Path: diskName(dir, disk), Root: root, ReadOnly: disk.ReadOnly,
		CacheType: "Writeback", IOEngine: "Sync", Limiter: limiterOf(disk.Limit),
	}
	if disk.AsyncIO {
		d.IOEngine = "Async"
	}
	return d
}

// refillMillis is the time in which a bucket fills up: it then holds what may pass
// in a second.
const refillMillis = 1000

// limiterOf renders a limit; nil for none.
func limiterOf(l vmm.RateLimit) *RateLimiter {
	if l == (vmm.RateLimit{}) {
		return nil
	}
	var r RateLimiter
	if l.BytesPerSec > 0 {
		r.Bandwidth = &TokenBucket{Size: l.BytesPerSec, OneTimeBurst: l.BurstBytes, RefillMillis: refillMillis}
	}
	if l.OpsPerSec > 0 {
		r.Ops = &TokenBucket{Size: l.OpsPerSec, RefillMillis: refillMillis}
	}
	return &r
}

// updateOf renders a limit for a device that has one, maybe. A bucket that is not
// there would be left as it is; an empty one takes the bound away (BucketUpdate in
// Firecracker's source).
func updateOf(l vmm.RateLimit) *RateLimiter {
	r := RateLimiter{Bandwidth: &TokenBucket{}, Ops: &TokenBucket{}}
	if l := limiterOf(l); l != nil && l.Bandwidth != nil {
		r.Bandwidth = l.Bandwidth
	}
	if l := limiterOf(l); l != nil && l.Ops != nil {
		r.Ops = l.Ops
	}
	return &r
}

// deviceID turns an id into one that Firecracker's API takes.
func deviceID(id string) string { return strings.ReplaceAll(id, "-", "_") }

// cmdline appends what Firecracker needs unless the caller said otherwise.
func cmdline(given string) string {
	words := strings.Fields(given)
	for _, extra := range strings.Fields(cmdlineExtra) {
		key, _, _ := strings.Cut(extra, "=")
		taken := slices.ContainsFunc(words, func(w string) bool {
			k, _, _ := strings.Cut(w, "=")
			return k == key
		})
		if !taken {
			given += " " + extra
		}
	}
	return strings.TrimSpace(given)
}

// logLevel translates the setting's words into the API's, which knows
// "Warning" and no "Warn".
func logLevel(level string) string {
	switch strings.ToLower(level) {
	case "off":
		return "Off"
	case "error":
		return "Error"
	case "warn", "warning":
		return "Warning"
	case "debug":
		return "Debug"
	case "trace":
		return "Trace"
	}
	return "Info"
}
