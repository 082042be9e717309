package qemu

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

const (
	// agentDevice is the socket, in the VM's directory, of the guest's serial
	// port. It has room for one client, which is the supervisor.
	agentDevice = "agent.dev"

	// agentPort is what the guest finds below /sys/class/virtio-ports.
	agentPort = "mvm.agent"

	maxProcessName = 15 // prctl(2), PR_SET_NAME
)

// Render implements vmm.Driver. Launch.PCI is not looked at: devices of a q35 sit
// on PCI anyway.
func (d *Driver) Render(l vmm.Launch) (vmm.Rendered, error) {
	if err := check(l); err != nil {
		return vmm.Rendered{}, err
	}
	r := vmm.Rendered{Argv: d.argv(l), Dir: l.Dir, APISocket: filepath.Join(l.Dir, l.Files.API)}
	if l.Agent {
		r.Guest = vmm.GuestChannel{Kind: "mux", Path: filepath.Join(l.Dir, l.Files.Agent)}
	}
	return r, nil
}

// option is an argument of the form "key=value,key=value". QEMU's parser
// (util/keyval.c and qemu-option.c) ends a value at a comma, unless it is
// doubled; nothing else is special there.
type option struct{ b strings.Builder }

func opt(first string) *option {
	o := &option{}
	o.b.WriteString(first)
	return o
}

func (o *option) set(key, value string) *option {
	if o.b.Len() > 0 {
		o.b.WriteByte(',')
	}
	o.b.WriteString(key + "=" + escape(value))
	return o
}

func (o *option) String() string { return o.b.String() }

func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// argv returns the command line. Sockets are relative to the VM's directory,
// because a unix socket's path is limited to 107 bytes.
func (d *Driver) argv(l vmm.Launch) []string {
	name := opt("").set("guest", supervisor.Token(l.ID))
	if l.Name != "" {
		name.set("process", clip("vm:"+l.Name))
	}
	argv := []string{l.Binary, "-name", name.String(), "-nodefaults", "-no-user-config", "-display", "none"}
	if d.opts.Seccomp() {
		// No privileges to gain, no programs to start, no other's limits to set.
		argv = append(argv, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	argv = append(argv, d.machineArgs(l)...)
	argv = append(argv, "-smp", strconv.Itoa(l.VCPUs), "-m", strconv.Itoa(l.MemMiB)+"M", "-kernel", l.Kernel)
	if l.Initrd != "" {
		argv = append(argv, "-initrd", l.Initrd)
	}
	argv = append(argv, "-append", d.cmdline(l),
		"-qmp", opt("unix:"+escape(l.Files.API)).set("server", "on").set("wait", "off").String(),
		// The supervisor is at the other end; Ctrl-C in the console is the guest's.
		"-chardev", "stdio,id=con,signal=off,mux=off", "-serial", "chardev:con")
	for i, disk := range l.Disks {
		argv = append(argv, diskArgs(i, disk)...)
	}
	for i, nic := range l.NICs {
		argv = append(argv, nicArgs(i, nic)...)
	}
	if l.Agent {
		argv = append(argv, "-device", "virtio-serial-pci,id=vs0",
			"-chardev", "socket,id=agent,path="+agentDevice+",server=on,wait=off",
			"-device", "virtserialport,bus=vs0.0,chardev=agent,name="+agentPort)
	}
	return append(argv, "-device", "virtio-rng-pci")
}

// clip shortens a process's name to what the kernel keeps of it.
func clip(name string) string {
	if len(name) > maxProcessName {
		name = name[:maxProcessName]
	}
	return name
}

// machineArgs choose the machine, how it is run, and its CPU.
func (d *Driver) machineArgs(l vmm.Launch) []string {
	if l.Accel == "kvm" {
		return []string{"-machine", machineType, "-accel", "kvm", "-cpu", "host"}
	}
	cpu := "max"
	if l.Nested {
		cpu = "max,+svm" // TCG emulates AMD's virtualisation with nested paging, and not Intel's
	}
	args := []string{"-machine", machineType, "-accel", "tcg,thread=multi", "-cpu", cpu}
	if rom := d.opts.Firmware(l.Binary); rom != "" {
		// Emulated, SeaBIOS takes 0.1 s more to start the kernel that is loaded already.
		args = append(args, "-bios", rom)
	}
	return args
}

// machineType is a q35 without the controllers that nothing is attached to.
const machineType = "q35,vmport=off,sata=off,usb=off,smbus=off"

// cmdline appends to the guest's command line what QEMU's machine needs, unless
// the caller said otherwise.
func (d *Driver) cmdline(l vmm.Launch) string {
	extra := []string{"console=ttyS0"}
	if l.Accel == "tcg" {
		// An emulated timer is late on a busy host. The kernel would take it for a
		// broken IO-APIC, and panic.
		extra = append(extra, "no_timer_check")
		if !slices.Contains(strings.Fields(l.Cmdline), "fips=1") {
			// The kernel's tests of its ciphers take 0.2 to 0.3 s when emulated.
			extra = append(extra, "cryptomgr.notests")
		}
		if khz := d.opts.TSCKHz(); khz > 0 {
			extra = append(extra, "tsc_early_khz="+strconv.FormatUint(khz, 10))
		}
	}
	words := strings.Fields(l.Cmdline)
	for _, e := range extra {
		if !slices.ContainsFunc(words, func(w string) bool { return key(w) == key(e) }) {
			words = append(words, e)
		}
	}
	return strings.Join(words, " ")
}

func key(word string) string {
	k, _, _ := strings.Cut(word, "=")
	return k
}

// diskArgs attach a disk. QEMU's default, writeback, passes the guest's flushes
// on to the file (docs/system/qemu-block-drivers, "cache"); Launch's Writeback
// asks for no more than that.
func diskArgs(i int, disk vmm.Disk) []string {
	id := fmt.Sprintf("d%d", i)
	drive := opt("").set("file", disk.Path).set("if", "none").set("id", id).set("format", disk.Format).
		set("cache", "writeback").set("aio", "threads")
	if disk.ReadOnly {
		drive.set("readonly", "on")
	} else {
		drive.set("discard", "unmap")
	}
	return []string{"-drive", drive.String(), "-device", opt("virtio-blk-pci").set("drive", id).set("serial", serial(disk.ID)).String()}
}

// serial shortens a disk's id to what virtio has room for (VIRTIO_BLK_ID_BYTES).
func serial(id string) string {
	const most = 20
	if len(id) > most {
		id = id[:most]
	}
	return id
}

// nicArgs attach a tap that exists. The network card has no boot ROM.
func nicArgs(i int, nic vmm.NIC) []string {
	id := fmt.Sprintf("n%d", i)
	return []string{
		"-netdev", opt("tap").set("id", id).set("ifname", nic.Tap).set("script", "no").set("downscript", "no").String(),
		"-device", opt("virtio-net-pci").set("netdev", id).set("mac", nic.MAC).set("romfile", "").String(),
	}
}
