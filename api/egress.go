package api

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// NetworkDenials are what a VM sent outside its network and was not let to, since it
// was started, or since what it may reach was changed.
type NetworkDenials struct {
	VM      string          `json:"vm"`
	Status  mvm.VMStatus    `json:"status"`
	Egress  string          `json:"egress"` // what it may reach: allow, deny, or a list
	Packets uint64          `json:"packets"`
	Bytes   uint64          `json:"bytes"`
	To      []NetworkDenial `json:"to"` // destinations of the last hour, the latest first
}

// NetworkDenial is where packets were sent to that were dropped.
type NetworkDenial struct {
	Address  string `json:"address"`
	Protocol string `json:"protocol"` // tcp, udp, icmp, or the number
	Port     int    `json:"port"`     // 0 but for tcp and udp
	Packets  uint64 `json:"packets"`
	Bytes    uint64 `json:"bytes"`
	LastAt   string `json:"last_at"`
}

// Denials tells what a VM was not let to. While it does not run there is nothing: the
// counters are the kernel's, and go with the VM's rules.
func (o *NetworkOperation) Denials(ctx context.Context, in VMInput) (*NetworkDenials, error) {
	c := o.core
	vm, err := (&VMOperation{c}).Get(ctx, in)
	if err != nil {
		return nil, err
	}
	if err := c.requireRoot("reading what was denied"); err != nil {
		return nil, err
	}
	d, err := c.net.Denials(ctx, network.TapSpec{Name: vm.TapDevice, VMID: vm.ID})
	if err != nil {
		return nil, mvm.Wrap(err, "read what was denied to VM", vm.Name)
	}
	out := &NetworkDenials{VM: vm.Name, Status: vm.Status, Egress: mvm.EgressText(vm.Options.Egress), Packets: d.Packets, Bytes: d.Bytes, To: []NetworkDenial{}}
	for _, to := range d.To {
		out.To = append(out.To, NetworkDenial{
			Address: to.Addr.String(), Protocol: protocolName(to.Protocol), Port: int(to.Port), Packets: to.Packets, Bytes: to.Bytes, LastAt: stamp(to.Last.Truncate(time.Second)),
		})
	}
	return out, nil
}

// protocolName is that of a protocol of IP whose name people know.
func protocolName(p uint8) string {
	if name, ok := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp"}[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// egressOf is what a VM may reach outside, as the kernel is to have it.
func egressOf(vm *mvm.VMInstanceItem) *network.Egress {
	if vm.Options.Egress == nil {
		return nil
	}
	prefixes, names := mvm.SplitEgress(vm.Options.Egress)
	return &network.Egress{Networks: prefixes, Names: len(names) > 0}
}

// tapLimit are the limits that the VM's tap holds: those of a VM whose VMM has no
// limiter of its own.
func tapLimit(vm *mvm.VMInstanceItem) network.Limit {
	l := vm.Options.NetLimit
	if l == nil || limitsItself(vm) {
		return network.Limit{}
	}
	return network.Limit{BytesPerSec: l.BytesPerSec, PacketsPerSec: l.OpsPerSec, BurstBytes: l.BurstBytes}
}

// limitsItself says whether a VM's VMM bounds its interfaces (vmm.NICLimiter).
func limitsItself(vm *mvm.VMInstanceItem) bool { return vm.Hypervisor == "firecracker" }

// reachStep changes rules and limits of a VM that runs. Reverting brings back what is
// stored of them.
type reachStep struct {
	c    *core
	VMID string `json:"vm_id"`

	do func(context.Context) error
}

func (s *reachStep) Kind() string { return "reach" }

func (s *reachStep) Apply(ctx context.Context) error { return s.do(ctx) }

func (s *reachStep) Revert(ctx context.Context) error {
	vm, err := s.c.st.GetVM(ctx, s.VMID)
	if errors.Is(err, mvm.ErrNotFound) || err == nil && !alive(vm) {
		return nil // rules and limits went with it
	}
	if err != nil {
		return err
	}
	_, err = s.c.refreshDNS(ctx, vm.NetworkID, "")
	return errors.Join(err, s.c.retap(ctx, vm))
}

// retap brings the rules and limits of a VM that runs in line with its choices.
func (c *core) retap(ctx context.Context, vm *mvm.VMInstanceItem) error {
	n, err := c.st.GetNetwork(ctx, vm.NetworkID)
	if err != nil {
		return err
	}
	spec, err := tapSpec(vm, n)
	if err != nil {
		return err
	}
	return c.net.AddTap(ctx, spec)
}
