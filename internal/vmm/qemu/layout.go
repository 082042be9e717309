package qemu

import (
	"fmt"

	"github.com/mvmctl/mvm/internal/vmm"
)

// Each device has a fixed place on PCI: a state loads only where every device is
// where it was, and whatever the order in which a launch names them. The root disk,
// the interfaces and the rest are on the root bus of a q35, where nothing can be
// plugged. All other disks have a root port each, cold-plugged or not, so that
// each can be unplugged.
const (
	rootSlot    = 0x01 // of the first disk; the lowest, so that it is vda
	firstNIC    = 0x02
	maxNICs     = serialSlot - firstNIC
	serialSlot  = 0x18
	rngSlot     = 0x19
	balloonSlot = 0x1a
	firstPort   = 0x1b // of the slots with root ports; the LPC bridge is at 0x1f
	maxPorts    = portsPerSlot * (0x1e - firstPort)
	maxDisks    = 1 + maxPorts

	// portsPerSlot are the functions of a slot. One slot of ports is always there;
	// it takes a guest less than can be measured to boot past it.
	portsPerSlot = 8

	rootBus = "pcie.0"
)

// layout says where the devices of a VM are.
type layout struct {
	ports int   // root ports
	disks []int // the port of each disk of the launch, from 1; 0 is the root bus
}

// freshLayout is that of a VM that boots: the disks after the first on the ports in
// their order.
func freshLayout(l vmm.Launch) layout {
	lay := layout{ports: portsFor(len(l.Disks) - 1)}
	for i := range l.Disks {
		lay.disks = append(lay.disks, i)
	}
	return lay
}

// portsFor returns how many ports a VM gets that has n disks to begin with.
func portsFor(n int) int {
	slots := (max(n, 1) + portsPerSlot - 1) / portsPerSlot
	return slots * portsPerSlot
}

// portName is the id of a root port, and the name of the bus behind it.
func portName(n int) string { return fmt.Sprintf("port%d", n) }

// at puts a device at a slot of the root bus.
func (o *option) at(slot int) *option {
	return o.set("bus", rootBus).set("addr", pciAddr(slot, 0))
}

func pciAddr(slot, function int) string { return fmt.Sprintf("%02x.%x", slot, function) }

// portArgs are the root ports.
func portArgs(n int) []string {
	var argv []string
	for i := range n {
		argv = append(argv, "-device", opt("pcie-root-port").set("id", portName(i+1)).set("chassis", fmt.Sprint(i+1)).
			set("bus", rootBus).set("addr", pciAddr(firstPort+i/portsPerSlot, i%portsPerSlot)).set("multifunction", "on").String())
	}
	return argv
}

// diskPlace is where a disk is: bus and address.
func diskPlace(port int) (bus, addr string) {
	if port == 0 {
		return rootBus, pciAddr(rootSlot, 0)
	}
	return portName(port), pciAddr(0, 0)
}

// diskDevice is the id of a disk's device. The number tells in which order the
// disks came; it is never used again while the VM runs.
func diskDevice(number int, id string) string { return fmt.Sprintf("disk%d-%s", number, id) }

// diskNode is the name of what a disk's device reads and writes: at most 31 bytes
// (BlockDriverState in include/block/block_int-common.h).
func diskNode(number int, id string) string { return fmt.Sprintf("node%d-%s", number, serial(id)) }
