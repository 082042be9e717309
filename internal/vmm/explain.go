package vmm

// Explainer is a Driver that knows more of how a VMM ended than its supervisor,
// which saw a status and the last line of stderr.
type Explainer interface {
	// Explain puts e, of the VMM behind h, into the driver's words: Reason is
	// never empty, and Signal is set where the host ended the VMM, whatever
	// status that gave.
	Explain(h Handle, e Exit) Exit
}
