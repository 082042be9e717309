package api

import (
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/vmm"
)

// kvmFor tells whether KVM virtualises here for a kernel; nil is an ordinary one. A
// paravirtual KVM does for kernels that are built as its guests.
func (c *core) kvmFor(kernel *mvm.KernelItem) host.KVM {
	kvm := c.checkKVM()
	if kvm.Usable || !kvm.Paravirtual || kernel == nil || !kernel.PVMGuest {
		return kvm
	}
	if kvm.Denied {
		return host.KVM{Paravirtual: true, Denied: true, Problem: host.KVMDenied}
	}
	return host.KVM{Usable: true, Paravirtual: true}
}

// forKernel corrects what a driver says of this host, where that is another thing for
// a kernel than for others. Drivers know nothing of kernels.
func (c *core) forKernel(p vmm.Probe, kernel *mvm.KernelItem) vmm.Probe {
	general, kvm := c.checkKVM(), c.kvmFor(kernel)
	if general == kvm {
		return p
	}
	fatal := false // whether this driver cannot do without KVM
	var problems []vmm.Problem
	for _, pr := range p.Problems {
		if strings.HasPrefix(pr.What, general.Problem.What) {
			fatal = pr.Fatal
			continue
		}
		problems = append(problems, pr)
	}
	if !kvm.Usable {
		problems = append(problems, vmm.Problem{What: kvm.Problem.What, Hint: kvm.Problem.Hint, Fatal: fatal})
	}
	p.Problems, p.Usable, p.Capabilities.NestedVirt = problems, true, false
	for _, pr := range problems {
		p.Usable = p.Usable && !pr.Fatal
	}
	if p.Usable && kvm.Usable {
		p.Accel = "kvm"
	}
	return p
}
