package vmmtest

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Each capability is there as an interface, too, or is refused by its name.
func testCapabilities(t *testing.T, f Fixture) {
	probe := f.Driver.Probe(within(t))
	have := probe.Capabilities
	m := start(t, f, f.Launch(t))
	_, pause := m.(vmm.Pauser)
	_, snapshot := m.(vmm.Snapshotter)
	_, hotplug := m.(vmm.DiskHotplugger)
	_, balloon := m.(vmm.Ballooner)
	_, limitDisk := m.(vmm.RateLimiter)
	_, limitNIC := m.(vmm.NICLimiter)
	_, metadata := m.(vmm.MetadataHolder)
	_, metrics := m.(vmm.Metered)
	for name, c := range map[string]struct{ says, is bool }{
		"Pause": {have.Pause, pause}, "Snapshot": {have.Snapshot, snapshot}, "DiskHotplug": {have.DiskHotplug, hotplug},
		"Balloon": {have.Balloon, balloon}, "RateLimit": {have.RateLimit, limitDisk}, "NICLimit": {have.NICLimit, limitNIC}, "Metadata": {have.Metadata, metadata},
		"Metrics": {have.Metrics, metrics},
	} {
		if c.says != c.is {
			t.Errorf("Capabilities.%s = %v, and the machine has its interface: %v", name, c.says, c.is)
		}
	}
	nic := vmm.NIC{ID: "eth0", Tap: "tap0", MAC: "02:fc:00:00:00:01"}
	limit, limited := vmm.RateLimit{BytesPerSec: 1 << 20}, nic
	limited.RX = limit
	for name, c := range map[string]struct {
		says   bool
		change func(*vmm.Launch)
	}{
		"Qcow2": {have.Qcow2, func(l *vmm.Launch) {
			l.Disks = []vmm.Disk{{ID: "rootfs", Path: filepath.Join(l.Dir, "rootfs"), Format: "qcow2"}}
		}},
		"Qcow2Volumes": {have.Qcow2Volumes, func(l *vmm.Launch) {
			l.DiskServer = probe.DiskServer
			l.Disks = []vmm.Disk{{ID: "rootfs", Path: filepath.Join(l.Dir, "rootfs"), Format: "raw"}, {ID: "data", Path: filepath.Join(l.Dir, "data"), Format: "qcow2"}}
		}},
		"Snapshot": {have.Snapshot, func(l *vmm.Launch) { l.Restore = &vmm.Restore{State: "/s/state", Mem: "/s/mem"} }},
		"Balloon":  {have.Balloon, func(l *vmm.Launch) { l.Balloon = &vmm.Balloon{MiB: 1} }},
		"RateLimit": {have.RateLimit, func(l *vmm.Launch) {
			l.Disks = []vmm.Disk{{ID: "rootfs", Path: filepath.Join(l.Dir, "rootfs"), Format: "raw", Limit: limit}}
		}},
		"NICLimit":  {have.NICLimit, func(l *vmm.Launch) { l.NICs = []vmm.NIC{limited} }},
		"Metadata":  {have.Metadata, func(l *vmm.Launch) { l.NICs, l.Metadata = []vmm.NIC{nic}, json.RawMessage(`{}`) }},
		"Metrics":   {have.Metrics, func(l *vmm.Launch) { l.Metrics = true }},
		"HugePages": {have.HugePages, func(l *vmm.Launch) { l.HugePages = true }},
		"Jail": {have.Jail, func(l *vmm.Launch) {
			l.Jail = &vmm.Jail{Jailer: "/bin/jailer", UID: vmm.FirstJailUID, GID: vmm.FirstJailUID}
		}},
	} {
		l := f.Launch(t)
		c.change(&l)
		_, err := f.Driver.Render(l)
		if c.says != (err == nil) {
			t.Errorf("Capabilities.%s = %v, and a launch with it gives: %v", name, c.says, err)
		}
		if err != nil && (!errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "") {
			t.Errorf("%s: %v (hint %q), want ErrUnsupported and the way out", name, err, mvm.HintOf(err))
		}
	}
}
