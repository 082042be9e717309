package api

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/firecracker"
	"github.com/mvmctl/mvm/internal/vmm/qemu"
)

// chooseDriver picks the hypervisor that really works here: Firecracker where
// KVM does, else QEMU. It says so once.
func (c *core) chooseDriver(ctx context.Context, st *store.Store, want, binPath, binaryID string) (vmm.Driver, vmm.Probe, *mvm.BinaryItem, error) {
	return c.chooseDriverFor(ctx, st, nil, want, binPath, binaryID)
}

// chooseDriverFor is chooseDriver for VMs with a kernel, which may boot where others
// do not.
func (c *core) chooseDriverFor(ctx context.Context, st *store.Store, kernel *mvm.KernelItem, want, binPath, binaryID string) (vmm.Driver, vmm.Probe, *mvm.BinaryItem, error) {
	binary, err := c.findBinary(ctx, st, binaryID)
	if err != nil {
		return nil, vmm.Probe{}, nil, err
	}
	fcPath := binPath
	if fcPath == "" && binary != nil {
		fcPath = c.paths.abs(binary.Path)
	}
	fc, qm := c.firecracker(fcPath), c.qemu()
	switch want {
	case "firecracker":
		p := c.forKernel(fc.Probe(ctx), kernel)
		return fc, p, binary, unusable(fc.Name(), p)
	case "qemu":
		p := c.forKernel(qm.Probe(ctx), kernel)
		return qm, p, nil, unusable(qm.Name(), p)
	}
	if err := validateHypervisor(want); err != nil { // it may come from a setting
		return nil, vmm.Probe{}, nil, err
	}
	fp := c.forKernel(fc.Probe(ctx), kernel)
	if fp.Usable {
		return fc, fp, binary, nil
	}
	if binPath != "" || binaryID != "" { // asked for by name: no silent fallback
		return nil, fp, nil, unusable(fc.Name(), fp)
	}
	qp := c.forKernel(qm.Probe(ctx), kernel)
	if err := unusable(qm.Name(), qp); err != nil {
		return nil, qp, nil, errors.Join(unusable(fc.Name(), fp), err)
	}
	accel := "software emulation"
	if qp.Accel == "kvm" {
		accel = "KVM"
	}
	why := ""
	if first := fatal(fp); first != nil {
		why = "; Firecracker cannot run here: " + first.What
	}
	c.noticeOnce(ctx, "hypervisor", "using QEMU "+qp.Version+" with "+accel+why)
	return qm, qp, nil, nil
}

func validateHypervisor(name string) error {
	switch name {
	case "", "auto", "firecracker", "qemu":
		return nil
	}
	return mvm.Errorf(mvm.ErrInvalid, "%s is not a hypervisor", mvm.Quote(name)).WithHint("use auto, firecracker or qemu")
}

func fatal(p vmm.Probe) *vmm.Problem {
	for i := range p.Problems {
		if p.Problems[i].Fatal {
			return &p.Problems[i]
		}
	}
	return nil
}

func unusable(name string, p vmm.Probe) error {
	if p.Usable {
		return nil
	}
	if f := fatal(p); f != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "%s cannot run here: %s", name, f.What).WithHint("%s", f.Hint)
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%s cannot run here", name).WithHint("see 'mvm host status'")
}

// findBinary returns the VMM binary asked for, or the default one, or nil.
func (c *core) findBinary(ctx context.Context, st *store.Store, selector string) (*mvm.BinaryItem, error) {
	all, err := st.ListBinaries(ctx)
	if err != nil {
		return nil, err
	}
	if selector != "" {
		cands := make([]candidate[*mvm.BinaryItem], 0, len(all))
		for _, b := range all {
			cands = append(cands, candidate[*mvm.BinaryItem]{b, b.Name + ":" + b.Version, [][]string{{b.Name + ":" + b.Version}}, b.ID})
		}
		return pick("binary", selector, "see 'mvm host status'", cands)
	}
	for _, b := range all {
		if b.IsDefault && b.Name == "firecracker" {
			return b, nil
		}
	}
	return nil, nil
}

// driverOf returns the driver that a VM was started with.
func (c *core) driverOf(name string) vmm.Driver {
	if name == "firecracker" {
		return c.firecracker("")
	}
	return c.qemu()
}

// killVMM ends the VMM and the supervisor of a VM, and what tells of their end,
// found by the VM's id in their command lines, and removes the VMM's jail. What does
// not end within settings.vm kill_timeout_sec after SIGKILL gives ErrUnavailable: the
// kernel has it wait for something, and nobody can help that.
func (c *core) killVMM(ctx context.Context, vmID string, grace time.Duration) error {
	if !validID(vmID) {
		return mvm.Errorf(mvm.ErrBroken, "%s is not a VM's id", mvm.Quote(vmID))
	}
	limit := c.killLimit(ctx)
	bounded, cancel := context.WithTimeout(ctx, grace+limit)
	defer cancel()
	if err := c.endProcesses(bounded, vmID, grace); err != nil {
		if bounded.Err() == nil || ctx.Err() != nil {
			return err
		}
		return unkillable(vmID, limit)
	}
	return c.clearVMM(ctx, vmID)
}

// killLimit is settings.vm kill_timeout_sec, or its default where it cannot be read.
func (c *core) killLimit(ctx context.Context) time.Duration {
	set, err := loadSettings(ctx, c.st)
	if err != nil {
		set = settings{}
	}
	return time.Duration(set.num("settings.vm", "kill_timeout_sec")) * time.Second
}

// unkillable is the error for processes that SIGKILL did not end.
func unkillable(vmID string, limit time.Duration) error {
	pids := "its processes have"
	if left, err := proc.FindByArg(supervisor.Token(vmID)); err == nil && len(left) > 0 {
		pids = "process"
		for _, id := range left {
			pids += " " + strconv.Itoa(id.PID)
		}
		pids += " has"
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%s not ended %s after SIGKILL: the kernel has it wait, for a disk or a device most likely", pids, limit).
		WithHint("see what 'dmesg' says, mend that, then try again; settings.vm kill_timeout_sec waits longer")
}

// clearVMM removes what a VMM that has ended may have left.
func (c *core) clearVMM(ctx context.Context, vmID string) error {
	dir := c.paths.vm(vmID)
	if err := supervisor.EndServers(ctx, vmID); err != nil {
		return err
	}
	if err := removeSockets(dir); err != nil {
		return err
	}
	return firecracker.Unjail(ctx, dir, vmID)
}

// removeSockets removes the sockets and FIFOs that killed processes have left in a
// VM's directory, which may be gone.
func removeSockets(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 {
			errs = append(errs, removeFile(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// recordHandle puts what Start returned into the VM's row.
func (p *vmPlan) recordHandle() error {
	data, err := json.Marshal(p.handle)
	if err != nil {
		return mvm.Errorf(mvm.ErrBroken, "the VM's handle cannot be written: %w", err)
	}
	started := p.startedAt.UnixMilli()
	it := p.item
	it.Handle, it.PID, it.ProcessStartTime = data, p.handle.VMM.PID, &started
	it.APISocketPath = p.handle.APISocket
	if relay := p.handle.Supervisor.PID; relay > 0 {
		it.RelayPID = &relay
	}
	return nil
}

func (c *core) launcher() supervisor.Launcher {
	return supervisor.Launcher{Exe: c.cfg.Executable, Ended: c.childArgs(endedCommand)}
}

func (c *core) realQEMU() vmm.Driver {
	return qemu.New(qemu.Options{Launcher: c.launcher(), CacheDir: c.paths.cache, Runner: c.runner})
}

func (c *core) realFirecracker(binary string) vmm.Driver {
	return firecracker.New(firecracker.Options{Binary: binary, Cache: filepath.Join(c.paths.cache, "firecracker.version"), Runner: c.runner, Launcher: c.launcher()})
}
