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
// on PCI anyway. Limits of disks and the balloon's first size are no part of the
// command: they are set before the vCPUs run. Of a VM that is restored, Start puts
// the disks after the first where its state has them.
func (d *Driver) Render(l vmm.Launch) (vmm.Rendered, error) {
	if err := check(l); err != nil {
		return vmm.Rendered{}, err
	}
	r := vmm.Rendered{Argv: d.argv(l, freshLayout(l)), Dir: l.Dir, APISocket: filepath.Join(l.Dir, l.Files.API)}
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
func (d *Driver) argv(l vmm.Launch, lay layout) []string {
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
	argv = append(argv, "-smp", strconv.Itoa(l.VCPUs), "-m", strconv.Itoa(l.MemMiB)+"M")
	argv = append(argv, d.bootArgs(l)...)
	argv = append(argv,
		"-qmp", opt("unix:"+escape(l.Files.API)).set("server", "on").set("wait", "off").String(),
		// The supervisor is at the other end; Ctrl-C in the console is the guest's.
		"-chardev", "stdio,id=con,signal=off,mux=off", "-serial", "chardev:con")
	argv = append(argv, portArgs(lay.ports)...)
	for i, disk := range l.Disks {
		argv = append(argv, diskArgs(i, lay.disks[i], disk)...)
	}
	for i, nic := range l.NICs {
		argv = append(argv, nicArgs(i, nic)...)
	}
	if l.Agent {
		argv = append(argv, "-device", opt("virtio-serial-pci").set("id", "vs0").at(serialSlot).String(),
			"-chardev", "socket,id=agent,path="+agentDevice+",server=on,wait=off",
			"-device", "virtserialport,bus=vs0.0,chardev=agent,name="+agentPort)
	}
	if l.Balloon != nil {
		argv = append(argv, "-device", opt("virtio-balloon-pci").set("id", balloonID).at(balloonSlot).
			set("deflate-on-oom", onOff(l.Balloon.DeflateOnOOM)).String())
	}
	return append(argv, "-device", opt("virtio-rng-pci").at(rngSlot).String())
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// bootArgs say what the guest boots, and whether it waits for us before. A VM that
// is restored may do without a kernel, but then does not come back from a reboot.
func (d *Driver) bootArgs(l vmm.Launch) []string {
	var argv []string
	if l.Kernel != "" {
		argv = append(argv, "-kernel", l.Kernel)
		if l.Initrd != "" {
			argv = append(argv, "-initrd", l.Initrd)
		}
		argv = append(argv, "-append", d.cmdline(l))
	}
	switch {
	case l.Restore != nil:
		argv = append(argv, "-S", "-incoming", "defer")
	case needsSetUp(l):
		argv = append(argv, "-S")
	}
	return argv
}

// clip shortens a process's name to what the kernel keeps of it.
func clip(name string) string {
	if len(name) > maxProcessName {
		name = name[:maxProcessName]
	}
	return name
}

// machineArgs choose the machine, its memory, how it is run, and its CPU.
func (d *Driver) machineArgs(l vmm.Launch) []string {
	var args []string
	machine := machineType
	if l.HugePages {
		// All taken at once: a page that is missing later would end the VM.
		args = append(args, "-object", opt("memory-backend-memfd").set("id", "mem").set("size", strconv.Itoa(l.MemMiB)+"M").
			set("hugetlb", "on").set("hugetlbsize", "2M").set("prealloc", "on").String())
		machine += ",memory-backend=mem"
	}
	args = append(args, "-machine", machine)
	if l.Accel == "kvm" {
		return append(args, "-accel", "kvm", "-cpu", cpuModel(l))
	}
	args = append(args, "-accel", "tcg,thread=multi", "-cpu", cpuModel(l))
	if rom := d.opts.Firmware(l.Binary); rom != "" {
		// Emulated, SeaBIOS takes 0.1 s more to start the kernel that is loaded already.
		args = append(args, "-bios", rom)
	}
	return args
}

func cpuModel(l vmm.Launch) string {
	switch {
	case l.Accel == "kvm":
		return "host"
	case l.Nested:
		return "max,+svm" // TCG emulates AMD's virtualisation with nested paging, and not Intel's
	}
	return "max"
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
		if !slices.ContainsFunc(words, func(w string) bool { return keyOf(w) == keyOf(e) }) {
			words = append(words, e)
		}
	}
	return strings.Join(words, " ")
}

func keyOf(word string) string {
	k, _, _ := strings.Cut(word, "=")
	return k
}

// diskArgs attach a disk that is there from the start.
func diskArgs(number, port int, disk vmm.Disk) []string {
	bus, addr := diskPlace(port)
	return []string{
		"-blockdev", nodeOf(number, disk).add(opt(""), "").String(),
		"-device", opt("virtio-blk-pci").set("id", diskDevice(number, disk.ID)).set("bus", bus).set("addr", addr).
			set("drive", diskNode(number, disk.ID)).set("serial", serial(disk.ID)).String(),
	}
}

// blockNode is a node of the block layer (BlockdevOptions in qapi/block-core.json).
type blockNode struct {
	Driver   string     `json:"driver"`
	Name     string     `json:"node-name,omitempty"`
	ReadOnly bool       `json:"read-only,omitempty"`
	Discard  string     `json:"discard,omitempty"`
	Filename string     `json:"filename,omitempty"`
	AIO      string     `json:"aio,omitempty"`
	File     *blockNode `json:"file,omitempty"`
}

// nodeOf describes a disk's file: format and protocol are named, so that QEMU
// guesses neither. Its default for writes passes the guest's flushes on to the file
// (docs/system/qemu-block-drivers, "cache"); Launch's Writeback asks for no more
// than that.
func nodeOf(number int, disk vmm.Disk) blockNode {
	discard := "unmap"
	if disk.ReadOnly || disk.NoDiscard {
		discard = ""
	}
	return blockNode{
		Driver: disk.Format, Name: diskNode(number, disk.ID), ReadOnly: disk.ReadOnly, Discard: discard,
		File: &blockNode{Driver: "file", Filename: disk.Path, AIO: "threads", ReadOnly: disk.ReadOnly, Discard: discard},
	}
}

// add writes the node as an option of the command line.
func (n blockNode) add(o *option, prefix string) *option {
	for _, kv := range [][2]string{{"driver", n.Driver}, {"node-name", n.Name}, {"filename", n.Filename}, {"aio", n.AIO}, {"discard", n.Discard}} {
		if kv[1] != "" {
			o.set(prefix+kv[0], kv[1])
		}
	}
	if n.ReadOnly {
		o.set(prefix+"read-only", "on")
	}
	if n.File != nil {
		n.File.add(o, prefix+"file.")
	}
	return o
}

// serial shortens a disk's id to what virtio has room for (VIRTIO_BLK_ID_BYTES).
func serial(id string) string {
	const most = 20
	if len(id) > most {
		id = id[:most]
	}
	return id
}

// nicArgs attach a tap that exists. The network card has no boot ROM. In a VM that
// is restored its address is the one in the state, whatever is said here. It asks no
// guest to announce itself: QEMU 7.2 frees the timer for that when a restored guest
// has done so, and dies of the next reset of the card (virtio_net_reset uses it).
func nicArgs(i int, nic vmm.NIC) []string {
	id := fmt.Sprintf("n%d", i)
	return []string{
		"-netdev", opt("tap").set("id", id).set("ifname", nic.Tap).set("script", "no").set("downscript", "no").String(),
		"-device", opt("virtio-net-pci").set("netdev", id).at(firstNIC+i).set("mac", nic.MAC).set("romfile", "").set("guest_announce", "off").String(),
	}
}
