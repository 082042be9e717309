package api

import (
	"encoding/json"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// validateOptions refuses what can never work of the choices beyond the reference.
func (in VMCreateInput) validateOptions() error {
	if in.VsockPort < 0 || in.VsockPort > 0 && in.VsockPort < 1024 {
		return mvm.Errorf(mvm.ErrInvalid, "%d is no vsock port for the agent", in.VsockPort).WithHint("set --vsock-port to 1024 or more, or leave it out")
	}
	if b := in.Balloon; b != nil && (b.MiB < 0 || b.StatsSec < 0) {
		return mvm.Errorf(mvm.ErrInvalid, "a balloon of %d MiB, with statistics each %d s", b.MiB, b.StatsSec).WithHint("give numbers that are not negative")
	}
	if in.Metadata != nil {
		if err := validateMetadata(in.Metadata); err != nil {
			return err
		}
	}
	if _, err := mvm.CheckEgress(in.Egress); err != nil {
		return err
	}
	if in.DNSServer != "" {
		if err := checkDNS(in.DNSServer); err != nil {
			return err
		}
	}
	for _, l := range []*mvm.VMLimit{in.DiskLimit, in.NetLimit} {
		if err := validateLimit(l); err != nil {
			return err
		}
	}
	return nil
}

// chooseDNS chooses who answers the VM: what was asked for, or what the setting was
// changed to. The setting's default leaves it to the host's resolvers where the
// network has DNS.
func (p *vmPlan) chooseDNS(in VMCreateInput) {
	d, _ := mvm.SettingOf("defaults.vm", "dns_server")
	p.item.DNSServer = firstOf(in.DNSServer, p.set.str("defaults.vm", "dns_server"))
	p.item.Options.OwnDNS = in.DNSServer != "" || p.item.DNSServer != d.Default
}

func validateMetadata(data json.RawMessage) error {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil || object == nil {
		return mvm.Errorf(mvm.ErrInvalid, "the metadata is not one JSON object").WithHint(`write for example {"role": "web"}`)
	}
	return nil
}

func validateLimit(l *mvm.VMLimit) error {
	if l != nil && (l.BytesPerSec < 0 || l.OpsPerSec < 0 || l.BurstBytes < 0 || l.BurstBytes > 0 && l.BytesPerSec == 0) {
		return mvm.Errorf(mvm.ErrInvalid, "a limit of %d bytes and %d operations a second, with a burst of %d bytes, limits nothing", l.BytesPerSec, l.OpsPerSec, l.BurstBytes).
			WithHint("give numbers that are not negative, and a burst beside bytes only")
	}
	return nil
}

// chooseOptions writes down the choices beyond the reference.
func (p *vmPlan) chooseOptions(in VMCreateInput) error {
	o := &p.item.Options
	o.NoJailer, o.Isolate = in.NoJailer, in.Isolate
	p.chooseDNS(in)
	var err error
	if o.Egress, err = mvm.CheckEgress(in.Egress); err != nil {
		return err
	}
	o.VsockPort = uint32(in.VsockPort) //nolint:gosec // checked by validateOptions
	if o.VsockPort == 0 {
		o.VsockPort = p.c.defaultAgentPort(p.set)
	}
	o.Writeback, o.HugePg, o.Balloon, o.Metadata, o.DiskLimit, o.NetLimit = in.Writeback, in.HugePages, in.Balloon, in.Metadata, in.DiskLimit, in.NetLimit
	if err := fitsBalloon(p.item); err != nil {
		return err
	}
	if in.FirecrackerBin != "" {
		abs, err := filepath.Abs(in.FirecrackerBin)
		if err != nil {
			return err
		}
		o.FirecrackerBin = abs
	}
	return nil
}

// fitsBalloon refuses a balloon that leaves its guest nothing.
func fitsBalloon(vm *mvm.VMInstanceItem) error {
	if b := vm.Options.Balloon; b != nil && b.MiB >= vm.MemSizeMiB {
		return mvm.Errorf(mvm.ErrInvalid, "a balloon of %d MiB leaves nothing of the guest's %d", b.MiB, vm.MemSizeMiB).WithHint("give less")
	}
	return nil
}

// applyOptions tells the driver of them.
func (p *vmPlan) applyOptions(l *vmm.Launch) {
	o := &p.item.Options
	l.Disks[0].Writeback, l.Disks[0].Limit, l.HugePages, l.Metadata = o.Writeback, rateLimit(o.DiskLimit), o.HugePg, o.Metadata
	for i := range l.NICs {
		if limitsItself(p.item) {
			l.NICs[i].RX, l.NICs[i].TX = rateLimit(o.NetLimit), rateLimit(o.NetLimit)
		}
	}
	if b := o.Balloon; b != nil {
		l.Balloon = &vmm.Balloon{MiB: b.MiB, DeflateOnOOM: b.DeflateOnOOM, StatsSec: b.StatsSec}
	}
}

func rateLimit(l *mvm.VMLimit) vmm.RateLimit {
	if l == nil {
		return vmm.RateLimit{}
	}
	return vmm.RateLimit{BytesPerSec: l.BytesPerSec, OpsPerSec: l.OpsPerSec, BurstBytes: l.BurstBytes}
}

// agentPort is where a VM's agent listens.
func (c *core) agentPort(vm *mvm.VMInstanceItem) uint32 {
	if vm.Options.VsockPort != 0 {
		return vm.Options.VsockPort
	}
	return firstAgentPort // of a VM from before ports were written down
}

const firstAgentPort = 1024

func (c *core) defaultAgentPort(set settings) uint32 {
	return uint32(set.num("defaults.vm", "vsock_port")) //nolint:gosec // validated when it was set
}
