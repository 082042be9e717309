package firecracker

import "github.com/mvmctl/mvm/internal/vmm"

var _ vmm.Explainer = (*Driver)(nil)

// Explain implements vmm.Explainer.
func (d *Driver) Explain(_ vmm.Handle, e vmm.Exit) vmm.Exit {
	e.Reason = reason(e.Code, e.Reason)
	return e
}
