package qemu

import "github.com/mvmctl/mvm/internal/vmm"

var _ vmm.Explainer = (*Driver)(nil)

// Explain implements vmm.Explainer.
func (d *Driver) Explain(h vmm.Handle, e vmm.Exit) vmm.Exit {
	m := &machine{handle: h}
	switch {
	case e.Code == 0 && m.terminated():
		e.Signal, e.Reason = "SIGTERM", "QEMU was ended by a signal"
	case e.Code == 0 && e.Reason == "":
		e.Reason = "guest powered off"
	case e.Reason == "":
		e.Reason = "QEMU failed"
	}
	return e
}
