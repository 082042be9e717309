package api

import (
	"context"
	"os"
	"strings"
)

// Run sets a machine up: database, key, host checks, default network. What is
// there already stays. What it cannot do here is said in the step's detail.
func (o *InitOperation) Run(ctx context.Context, in InitInput, opts ...Option) (*InitResult, error) {
	c, progress := o.core, options(opts).progress
	progress.Send("database", "opening the database")
	_, statErr := os.Stat(c.paths.db())
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	res := &InitResult{Next: []string{}}
	step := func(name string, done bool, detail string) {
		res.Steps = append(res.Steps, InitStep{Name: name, Done: done, Detail: detail})
	}
	step("database", statErr != nil, c.paths.db())
	progress.Send("key", "looking for a default key")
	k, made, err := c.defaultKey(ctx, st)
	if err != nil {
		return nil, err
	}
	step("key", made, k.Name+" "+k.Fingerprint)
	if !in.SkipHost {
		detail, made, err := c.wantFirecracker(ctx, st, progress)
		if err != nil {
			return nil, err
		}
		step("firecracker", made, detail)
		progress.Send("host", "looking at the host")
		status, err := (&HostOperation{c}).Status(ctx)
		if err != nil {
			return nil, err
		}
		res.Hypervisor = status.Hypervisor
		if status.Hypervisor != "none" { // said here, so that the first create need not
			if _, _, _, err := c.chooseDriver(ctx, st, "auto", "", ""); err != nil {
				return nil, err
			}
		}
		step("host", false, hostLine(status))
	}
	if !in.SkipNetwork {
		progress.Send("network", "bringing up the default network")
		if err := c.initNetwork(ctx, step); err != nil {
			return nil, err
		}
	}
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return nil, err
	}
	if len(inv.kernels) == 0 {
		res.Next = append(res.Next, "mvm kernel pull debian")
	}
	if len(inv.images) == 0 {
		res.Next = append(res.Next, "mvm image pull debian")
	}
	res.Next = append(res.Next, "mvm vm create NAME --wait")
	return res, nil
}

func (c *core) initNetwork(ctx context.Context, step func(string, bool, string)) error {
	n, made, err := c.defaultNetwork(ctx, c.st)
	if err != nil {
		return err
	}
	detail := n.Name + " " + n.Subnet + " on bridge " + n.Bridge
	if !c.mayAct() {
		step("network", made, detail+"; it is brought up with the first VM, which needs root")
		return nil
	}
	seen, err := c.observeNetwork(ctx, c.st, n)
	if err != nil {
		return err
	}
	if _, err := c.ensureAndRecord(ctx, networkSpec(n)); err != nil {
		return err
	}
	step("network", made || !seen.Active(), detail)
	return nil
}

func hostLine(s *HostStatus) string {
	var parts []string
	for _, d := range s.Drivers {
		if d.Usable {
			parts = append(parts, d.Name+" "+d.Version+" ("+d.Accel+")")
		}
	}
	if len(parts) == 0 {
		return "no hypervisor can run here; see 'mvm host status'"
	}
	line := "VMs run on " + s.Hypervisor + "; usable: " + strings.Join(parts, ", ")
	if !s.KVMAccessible {
		line += "; no KVM: " + s.KVMReason
	}
	return line
}
