package api

import (
	"context"

	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Status looks at the host: which hypervisors work, what is missing, and what
// to do about it. It changes nothing.
func (o *HostOperation) Status(ctx context.Context) (*HostStatus, error) {
	c := o.core
	kvm := host.CheckKVM()
	s := &HostStatus{
		KVMAccessible: kvm.Usable, IPForward: host.IPForward(), MissingBinaries: host.MissingBinaries(),
		Drivers: []DriverState{}, Problems: []HostProblem{}, CacheDir: c.paths.cache, State: "not ready", Hypervisor: "none",
	}
	if !kvm.Usable {
		s.KVMReason, s.KVMHint = kvm.Problem.What, kvm.Problem.Hint
		s.Problems = append(s.Problems, HostProblem{kvm.Problem.What, kvm.Problem.Hint})
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	binary, err := c.findBinary(ctx, st, "")
	if err != nil {
		return nil, err
	}
	path := ""
	if binary != nil {
		path = c.paths.abs(binary.Path)
	}
	for _, d := range []vmm.Driver{c.firecracker(path), c.qemu()} {
		p := d.Probe(ctx)
		ds := DriverState{Name: d.Name(), Usable: p.Usable, Path: p.Path, Version: p.Version, Accel: p.Accel, Problems: []string{}}
		for _, pr := range p.Problems {
			ds.Problems = append(ds.Problems, pr.What)
			if pr.What != s.KVMReason {
				s.Problems = append(s.Problems, HostProblem{d.Name() + ": " + pr.What, pr.Hint})
			}
		}
		if p.Usable && s.Hypervisor == "none" {
			s.Hypervisor = d.Name()
		}
		s.Drivers = append(s.Drivers, ds)
	}
	switch {
	case s.Hypervisor == "none":
	case s.KVMAccessible && s.IPForward == "1" && len(s.MissingBinaries) == 0:
		s.State = "ready"
	default:
		s.State = "degraded"
	}
	return s, nil
}
