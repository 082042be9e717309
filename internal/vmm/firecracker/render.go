// Package firecracker is the driver for Firecracker: it renders the
// configuration file, speaks the API on the unix socket, and finds a running VM
// again. It knows no store and no network: taps and disks are there already,
// and the process belongs to a supervisor.
package firecracker

import (
	"bytes"
	"encoding/json"
	"fmt"
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

// Render implements vmm.Driver.
func (d *Driver) Render(l vmm.Launch) (vmm.Rendered, error) {
	seen, root, argv := l, l.Dir, argvOf(l)
	if l.Jail != nil {
		seen, root, argv = inside(l), jailRoot(l), jailArgv(l, argv)
	}
	cfg, err := configOf(seen)
	if err != nil {
		return vmm.Rendered{}, err
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
func marshal(cfg Config) ([]byte, error) {
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
// would go to stdout, which is the guest's console. (A log file given in both
// places would be opened twice without O_APPEND and overwritten.)
func argvOf(l vmm.Launch) []string {
	argv := []string{l.Binary, "--id", supervisor.Token(l.ID), "--api-sock", l.Files.API, "--config-file", l.Files.Config}
	if l.Logging {
		argv = append(argv, "--log-path", l.Files.Log, "--level", logLevel(l.LogLevel), "--show-level")
	} else {
		argv = append(argv, "--log-path", "/dev/null", "--level", "Off")
	}
	if l.PCI {
		argv = append(argv, "--enable-pci")
	}
	return argv
}

func configOf(l vmm.Launch) (Config, error) {
	if err := check(l); err != nil {
		return Config{}, err
	}
	cfg := Config{
		BootSource: BootSource{Kernel: l.Kernel, Initrd: l.Initrd, Args: cmdline(l.Cmdline)},
		Drives:     []Drive{},
		Machine:    MachineConfig{VCPUs: l.VCPUs, MemMiB: l.MemMiB},
		CPU:        l.CPUTemplate,
		Entropy:    &Entropy{},
	}
	for i, disk := range l.Disks {
		// The root device would be put first and get "root=/dev/vda" on the
		// command line. The order is right already, and an initrd finds the
		// root by itself, as does a kernel that was told its root.
		root := i == 0 && l.Initrd == "" && !strings.Contains(" "+l.Cmdline, " root=")
		cfg.Drives = append(cfg.Drives, driveOf(l.Dir, disk, root))
	}
	for _, nic := range l.NICs {
		cfg.NICs = append(cfg.NICs, NetworkInterface{ID: deviceID(nic.ID), Tap: nic.Tap, MAC: nic.MAC})
	}
	if l.Agent {
		cfg.Vsock = &Vsock{CID: guestCID, Path: l.Files.Agent}
	}
	if l.Logging {
		// A configured logger without level falls back to Info.
		cfg.Logger = &Logger{Level: logLevel(l.LogLevel), ShowLevel: true}
	}
	if l.Metrics {
		cfg.Metrics = &Metrics{Path: l.Files.Metrics}
	}
	return cfg, nil
}

// driveOf renders one disk. The cache type is always Firecracker's "Writeback",
// which passes the guest's flushes on to the file: its default, "Unsafe", drops
// them, and nobody asked for that.
func driveOf(dir string, disk vmm.Disk, root bool) Drive {
	return Drive{
		ID: deviceID(disk.ID), Path: diskName(dir, disk), Root: root, ReadOnly: disk.ReadOnly,
		CacheType: "Writeback", IOEngine: "Sync",
	}
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

func unsupported(field, why string) *mvm.Error {
	return mvm.Errorf(mvm.ErrUnsupported, "firecracker cannot honour %s: %s", field, why)
}

func invalid(field, format string, args ...any) *mvm.Error {
	return mvm.Errorf(mvm.ErrInvalid, "%s: %w", field, fmt.Errorf(format, args...))
}

// check refuses what Firecracker cannot do or would misread.
func check(l vmm.Launch) error {
	if err := checkNames(l); err != nil {
		return err
	}
	switch {
	case l.Accel != "" && l.Accel != "kvm":
		return unsupported("accel "+l.Accel, "it runs on KVM only").WithHint("use --hypervisor qemu")
	case l.VCPUs < 1:
		return invalid("vcpu", "%d vCPUs", l.VCPUs).WithHint("give at least 1")
	case l.VCPUs > maxVCPUs:
		return unsupported("vcpu", fmt.Sprintf("%d vCPUs are more than its %d", l.VCPUs, maxVCPUs)).
			WithHint("give at most %d, or use --hypervisor qemu", maxVCPUs)
	case l.MemMiB < 1:
		return invalid("mem", "%d MiB", l.MemMiB).WithHint("give at least 128 MiB")
	case l.Kernel == "":
		return invalid("kernel", "there is none").WithHint("mvm kernel pull")
	case strings.ContainsFunc(l.Cmdline, func(r rune) bool { return r < ' ' || r > '~' }):
		return invalid("boot_args", "a character that is not printable ASCII").WithHint("write the arguments on one line")
	case len(cmdline(l.Cmdline)) > maxCmdline:
		return unsupported("boot_args", fmt.Sprintf("%d bytes are more than its %d", len(cmdline(l.Cmdline)), maxCmdline)).
			WithHint("shorten --boot-args")
	}
	if err := checkDevices(l); err != nil {
		return err
	}
	if err := checkJail(l); err != nil {
		return err
	}
	return checkTemplate(l.CPUTemplate)
}

// checkNames holds the id to what validate_instance_id in Firecracker's source
// takes, and the names of files to a single element of a path.
func checkNames(l vmm.Launch) error {
	bad := strings.ContainsFunc(l.ID, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if l.ID == "" || len(supervisor.Token(l.ID)) > 64 || bad {
		return invalid("id", "%q is no instance id", l.ID).WithHint("use 1 to 60 letters, digits and hyphens")
	}
	if !filepath.IsAbs(l.Dir) || !filepath.IsAbs(l.Binary) {
		return invalid("dir or binary", "%q, %q: not absolute", l.Dir, l.Binary).WithHint("mvm binary ls shows what is installed")
	}
	names := map[string]string{"api": l.Files.API, "config": l.Files.Config, "console": l.Files.Console}
	if l.Logging {
		names["log"] = l.Files.Log
	}
	if l.Metrics {
		names["metrics"] = l.Files.Metrics
	}
	if l.Agent {
		names["agent"] = l.Files.Agent
	}
	for field, name := range names {
		if name == "" || name[0] == '-' || name != filepath.Base(name) || name == "." || name == ".." {
			return invalid("files."+field, "%q is no file name", name).WithHint("see 'mvm config ls' for the names of files")
		}
	}
	return nil
}

func checkDevices(l vmm.Launch) error {
	seen := map[string]bool{}
	for _, disk := range l.Disks {
		id := deviceID(disk.ID)
		if err := checkID(id); err != nil {
			return err
		}
		if seen[id] {
			return invalid("disk", "two have the id %q", id).WithHint("give each disk an id of its own")
		}
		seen[id] = true
		if !filepath.IsAbs(disk.Path) {
			return invalid("disk "+disk.ID, "its path %q is not absolute", disk.Path).WithHint("give the whole path")
		}
		if disk.Format != "raw" {
			return unsupported("disk "+disk.ID, "its format is "+disk.Format+", and only raw is known").
				WithHint("convert the disk to raw, or use --hypervisor qemu")
		}
	}
	nics := map[string]bool{}
	for _, nic := range l.NICs {
		id := deviceID(nic.ID)
		if err := checkID(id); err != nil {
			return err
		}
		if nics[id] {
			return invalid("nic", "two have the id %q", id).WithHint("give each interface an id of its own")
		}
		nics[id] = true
	}
	return nil
}

// checkTemplate looks for the sections of a CPU template
// (docs/cpu_templates/cpu-templates.md), because Firecracker would only say
// that the whole file does not match.
func checkTemplate(data json.RawMessage) error {
	if data == nil {
		return nil
	}
	err := isObject(data)
	if err == nil {
		var t struct {
			KVM   []string          `json:"kvm_capabilities"`
			CPUID []json.RawMessage `json:"cpuid_modifiers"`
			MSR   []json.RawMessage `json:"msr_modifiers"`
			Reg   []json.RawMessage `json:"reg_modifiers"`
			VCPU  []json.RawMessage `json:"vcpu_features"`
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		err = dec.Decode(&t)
	}
	if err != nil {
		return invalid("cpu_config", "no CPU template: %w", err).
			WithHint("see Firecracker's docs/cpu_templates/cpu-templates.md for the format")
	}
	return nil
}
